"""The store of candidates: a kill at any byte loses one batch at most, and the final file is the same."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.candidates import CANDIDATES, make_candidate

from megatron_chimed.errors import InputError
from megatron_chimed.rejection.store import CandidateStore, count_stored, read_candidates, write_candidates

BATCHES = [[make_candidate(f"p{batch}", sample) for sample in range(2)] for batch in range(4)]


def fill(path, batches=BATCHES, inputs_hash="settings") -> list[int]:
    """Append the batches that are missing, and publish; the numbers of those appended."""
    added = []
    with CandidateStore(path, inputs_hash) as store:
        for number, batch in enumerate(batches):
            if batch[0].key not in store.candidates:
                store.append(batch)
                added.append(number)
        store.publish(path.with_name("final.jsonl"))
    return added


def test_a_kill_at_a_byte_loses_one_batch_at_most_and_changes_no_byte_of_the_result(tmp_path):
    path = tmp_path / "store"
    fill(path)
    whole, expected = path.read_bytes(), (tmp_path / "final.jsonl").read_bytes()
    around = {place + beside for place, byte in enumerate(whole) if byte == ord("\n") for beside in (-1, 0, 1, 2)}
    for cut in sorted({*range(0, len(whole), 17), *around} & set(range(len(whole)))):
        path.write_bytes(whole[:cut])
        ends = [place for place in range(cut) if whole[place] == ord("\n")]
        assert fill(path) == list(range(max(0, len(ends) - 1), 4)), "a whole batch was lost, or a part of one kept"
        assert path.read_bytes() == whole
        assert (tmp_path / "final.jsonl").read_bytes() == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(candidates=CANDIDATES, draw=st.randoms(use_true_random=False))
def test_answers_stay_with_their_prompts_in_whatever_order_they_come(tmp_path, candidates, draw):
    path = tmp_path / "store"
    path.unlink(missing_ok=True)
    order = draw.sample(candidates, len(candidates))
    with CandidateStore(path, "a") as store:
        while order:
            size = draw.randint(1, 5)
            store.append(order[:size])
            order = order[size:]
        store.publish(tmp_path / "one.jsonl")
    with CandidateStore(path, "a") as store:
        assert store.candidates == {one.key: one for one in candidates}
    write_candidates(tmp_path / "other.jsonl", candidates)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "other.jsonl").read_bytes()
    assert read_candidates(tmp_path / "one.jsonl") == sorted(candidates, key=lambda one: one.key)
    assert count_stored(path) == len(candidates)


def test_a_batch_is_on_the_disk_when_append_returns(tmp_path):
    with CandidateStore(tmp_path / "store", "a") as store:
        store.append(BATCHES[0])
        assert count_stored(tmp_path / "store") == 2
        with CandidateStore(tmp_path / "store", "a") as other:
            assert set(other.candidates) == {one.key for one in BATCHES[0]}


def test_a_store_of_other_settings_is_set_aside_and_begun_anew(tmp_path):
    path = tmp_path / "store"
    fill(path)
    before = path.read_bytes()
    assert fill(path, inputs_hash="others") == [0, 1, 2, 3]
    assert (tmp_path / "store.old").read_bytes() == before


def test_a_key_is_never_there_twice(tmp_path):
    with CandidateStore(tmp_path / "store", "a") as store:
        store.append(BATCHES[0])
        with pytest.raises(InputError, match="twice"):
            store.append(BATCHES[0][:1])
    path = tmp_path / "rows.jsonl"
    path.write_text(2 * (json.dumps(BATCHES[0][0].to_row()) + "\n"))
    with pytest.raises(InputError, match=r"rows.jsonl:2: candidate .* twice"):
        read_candidates(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{}", "no batch"),
        (b"nonsense", "invalid JSON"),
        (b'{"batch": [{"round": 1}]}', "field 'sample'"),
        (b"\xff", "invalid UTF-8"),
    ],
)
def test_a_spoilt_line_is_named_and_left_alone(tmp_path, line, reason):
    path = tmp_path / "store"
    fill(path)
    lines = path.read_bytes().splitlines(keepends=True)
    spoilt = b"".join([*lines[:2], line + b"\n", *lines[2:]])
    path.write_bytes(spoilt)
    with pytest.raises(InputError, match=rf"store:3: {reason}"):
        CandidateStore(path, "settings")
    assert path.read_bytes() == spoilt
