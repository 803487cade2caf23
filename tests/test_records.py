"""Records as JSON rows: there and back, and what a bad row says."""

import pytest

from megatron_chimed.errors import InputError
from megatron_chimed.records import Candidate, Dialogue, Prompt, RankedGroup, Turn

USER, DOCTOR = {"role": "user", "text": "头痛"}, {"role": "assistant", "text": "多休息"}
ROW = {"id": "cmd:a.jsonl:1", "source": "cmd", "turns": [USER, DOCTOR]}


def test_a_dialogue_comes_back_from_its_row():
    dialogue = Dialogue("cmd:a.jsonl:1", "cmd", (Turn("user", "头痛"), Turn("assistant", "多休息")))
    assert dialogue.to_row() == ROW
    assert Dialogue.from_row(ROW) == dialogue


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "field 'id' holds nothing"),
        ({"source": 3}, "field 'source' holds 3"),
        ({"turns": []}, "field 'turns' holds []"),
        ({"turns": {"role": "user"}}, "expected a list"),
        ({"turns": ["hello"]}, "turn 0 is 'hello'"),
        ({"turns": [{"role": "doctor", "text": "x"}]}, "turn 0 has role 'doctor'"),
        ({"turns": [{"role": "system", "text": "x"}]}, "turn 0 is the system's, and no other turn"),
        (
            {"turns": [USER, {"role": "system", "text": "x"}, DOCTOR]},
            "turn 1 is the system's; expected the assistant's",
        ),
        ({"turns": [USER, DOCTOR | {"learn": 0}]}, "turn 1 has thinking '' and learn 0"),
        ({"turns": [USER, DOCTOR | {"thinking": None}]}, "turn 1 has thinking nothing"),
        ({"turns": [USER | {"learn": False}, DOCTOR]}, "turn 0 is the user's, with thinking or learn"),
        ({"turns": [{"role": "user", "text": " \n"}]}, "turn 0 has text"),
        ({"turns": [USER, {"role": "assistant", "text": None}]}, "turn 1 has text nothing"),
        ({"turns": [USER]}, "the last turn is the user's"),
        ({"turns": [DOCTOR, USER]}, "turn 0 is the assistant's"),
        ({"turns": [USER, USER]}, "turn 1 is the user's"),
    ],
)
def test_a_bad_row_is_refused_with_the_place(change, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        Dialogue.from_row(ROW | change)


GROUP = {"id": "cmd:a.jsonl:1", "source": "cmd", "turns": [USER], "responses": ["好", None, "坏"], "ranks": [0, -1, 2]}
CANDIDATE = {
    "round": 1, "prompt": "cmd:1", "sample": 0, "response": "", "num_tokens": 1, "finished": True, "reward": None
}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "row"),
    [(Prompt, {"id": "a", "source": "b", "turns": [USER, DOCTOR, USER]}), (RankedGroup, GROUP), (Candidate, CANDIDATE)],
)
def test_the_other_records_come_back_from_their_rows(record, row):
    assert record.from_row(row | {"note": 1}).to_row() == row


@pytest.mark.parametrize(
    ("record", "row", "message"),
    [
        (Prompt, {"id": "a", "source": "b", "turns": [USER, DOCTOR]}, "expected a question"),
        (RankedGroup, GROUP | {"responses": ["好"]}, "two texts or more"),
        (RankedGroup, GROUP | {"ranks": [0, -1]}, "one number for each"),
        (RankedGroup, GROUP | {"ranks": [0, -1, True]}, "rank 2 is True"),
        (RankedGroup, GROUP | {"ranks": [0, -1, -2]}, "rank 2 is -2"),
        (RankedGroup, GROUP | {"responses": ["好", " ", "坏"]}, "response 1 is ' '"),
        (RankedGroup, GROUP | {"ranks": [0, 1, 2]}, "rank -1 and null go together"),
        (RankedGroup, GROUP | {"ranks": [0, -1, -1]}, "rank -1 and null go together"),
        (Candidate, CANDIDATE | {"sample": -1}, "'sample' holds -1"),
        (Candidate, CANDIDATE | {"prompt": ""}, "'prompt' holds ''"),
        (Candidate, CANDIDATE | {"response": None}, "'response' holds nothing"),
        (Candidate, CANDIDATE | {"finished": 1}, "'finished' holds 1"),
        (Candidate, CANDIDATE | {"reward": float("nan")}, "'reward' holds nan"),
        (Candidate, CANDIDATE | {"thinking": None}, "'thinking' holds nothing"),
    ],
)
def test_bad_rows_of_the_other_records_are_refused(record, row, message):
    with pytest.raises(InputError, match=message):
        record.from_row(row)
