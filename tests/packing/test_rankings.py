"""Packing ranked answers: each once, a question together, prompts cut alike, what is of no use dropped by reason."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support.corpora import call, call_here, write_model
from support.dialogues import KINDS, make_renderer
from support.rankings import make_groups, whole_answers, write_groups

from megatron_chimed.datasets.packed_dataset import PackedDatasetConfig, build_packed_datasets
from megatron_chimed.datasets.ranking import RankingDataset
from megatron_chimed.datasets.sft import SftDataset, SftDatasetConfig
from megatron_chimed.errors import InputError
from megatron_chimed.packing import chunks
from megatron_chimed.packing.builder import RowOptions, pack_units
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.ranking_worker import NO_PAIR, TOO_LONG
from megatron_chimed.packing.rankings import RankingRowOptions, format_ranking_rows, pack_rankings
from megatron_chimed.records import Dialogue, RankedGroup, Turn
from megatron_chimed.text.renderer import Renderer


@pytest.fixture(scope="module")
def renderer(tmp_path_factory) -> Renderer:
    return make_renderer("sentencepiece", tmp_path_factory.mktemp("tokenizer"))


def run(folder: Path, groups, renderer, length=256, name="packed", **options) -> tuple[dict, PackedRows]:
    source = write_groups(folder / "ranked.jsonl", groups)
    content = pack_rankings(
        [str(source)], folder / name, renderer, RankingRowOptions(length, progress=False, **options)
    )
    return content, PackedRows(folder / name)


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_is_there_once_as_the_renderer_writes_it(tmp_path, kind, shared_prompt):
    renderer, groups = make_renderer(kind, tmp_path), make_groups(60)
    content, packed = run(tmp_path, groups, renderer, 1024, shared_prompt=shared_prompt)
    found = whole_answers(packed)
    for number, group in enumerate(groups):
        there = [
            (text, rank) for text, rank in zip(group.responses, group.preference_ranks, strict=True) if text is not None
        ]
        if len({rank for _, rank in there}) < 2:
            assert number not in found
            continue
        expected = [
            (renderer.render(Dialogue("x", "x", (*group.turns, Turn("assistant", text)))).tokens.tolist(), rank)
            for text, rank in there
        ]
        assert found[number] == expected
    kept = content["report"]["kept"]
    assert kept["tokens"] == len(packed.tokens)
    assert kept["trained"] == len(packed.segment_offsets) - 1 == sum(map(len, found.values()))
    assert content["dropped"][NO_PAIR] >= 1 and str(kept["trained"]) in format_ranking_rows(content).replace(",", "")


@pytest.mark.parametrize("shared_prompt", [True, False])
def test_a_question_is_in_one_row_and_scored_at_its_answers_last_tokens(tmp_path, renderer, shared_prompt):
    _, packed = run(tmp_path, make_groups(80), renderer, shared_prompt=shared_prompt)
    config = PackedDatasetConfig(
        random_seed=1, sequence_length=256, blend=([str(packed.folder)], None), split="1,0,0", vocab_size=10**6
    )
    dataset = build_packed_datasets(RankingDataset, config, (len(packed), 0, 0))[0]
    rows_of_group: dict[int, set[int]] = {}
    whole = whole_answers(packed)
    for row in range(len(packed)):
        for segment in packed.segments(row):
            rows_of_group.setdefault(int(packed.arrays["segment_group"][segment]), set()).add(row)
        sample = dataset.sample(row)
        scored = np.flatnonzero(sample["rank"] >= 0)
        bounds = packed.segment_offsets[packed.segments(row).start : packed.segments(row).stop + 1]
        assert scored.tolist() == (bounds[1:] - bounds[0] - 1).tolist()
        assert (sample["tokens"][scored] == renderer.tokenizer.eos_id).all()
        assert ((sample["group"] >= 0) == (sample["rank"] >= 0)).all()
        for place, segment in zip(scored, packed.segments(row), strict=True):
            length, group = int(sample["length"][place]), packed.arrays["segment_group"][segment]
            others = [
                p
                for p, s in zip(scored, packed.segments(row), strict=True)
                if packed.arrays["segment_group"][s] == group
            ]
            assert {int(sample["group"][p]) for p in others} == {int(sample["group"][place])}
            assert 1 < length <= sample["position_ids"][place] + 1
            position = len(whole[int(group)].pop(0)[0]) - 1
            assert sample["position_ids"][place] == position, "as if the answer stood behind its prompt alone"
    assert all(len(rows) == 1 for rows in rows_of_group.values()) and len(rows_of_group) > 60


@pytest.mark.parametrize("shared_prompt", [True, False])
def test_prompts_are_cut_from_the_left_for_all_answers_alike_and_answers_never(tmp_path, renderer, shared_prompt):
    turns = tuple(Turn(("user", "assistant")[i % 2], f"{i}头痛发热咳嗽" * 4) for i in range(5))
    group = RankedGroup("a", "cmd", turns, ("多喝水", "去医院看医生", "不知道"), (0, 1, 2))
    content, packed = run(tmp_path, [group], renderer, 4096, shared_prompt=shared_prompt)
    whole, before = whole_answers(packed)[0], len(packed.tokens)
    least = len(renderer.render_prompt([Turn("user", "")]))
    smallest = (least + 2 if shared_prompt else 3 * least) + sum(
        len(renderer.encode_exchanges([(turns[0], Turn("assistant", text))])[0][0].response) for text in group.responses
    )
    for limit in (*range(before, smallest, -11), smallest):
        content, packed = run(tmp_path, [group], renderer, limit, shared_prompt=shared_prompt)
        cut = whole_answers(packed)[0]
        assert len(packed.tokens) <= limit
        prompts = set()
        for (tokens, _), (full, _), text in zip(cut, whole, group.responses, strict=True):
            response = renderer.encode_exchanges([(turns[0], Turn("assistant", text))])[0][0].response.tolist()
            assert tokens[-len(response) :] == full[-len(response) :] == response
            prompts.add(tuple(tokens[: -len(response)]))
        assert len(prompts) == 1, "all answers see one prompt"
        report = content["report"]
        lost = sum(report[what]["tokens"] for what in ("shortened", "cut", "dropped"))
        assert report["in"]["tokens"] == before == lost + report["kept"]["tokens"]
    with pytest.raises(InputError, match="nothing to pack"):
        run(tmp_path, [group], renderer, smallest - 1, name="none", shared_prompt=shared_prompt)


def test_extremes_keep_two_levels_and_shuffling_keeps_the_answers(tmp_path, renderer):
    groups = make_groups(60)
    _, packed = run(tmp_path, groups, renderer, pairing="extremes")
    for number, found in whole_answers(packed).items():
        ranks = [rank for rank in groups[number].preference_ranks if rank >= 0]
        assert [rank for _, rank in found] == [rank for rank in ranks if rank in (min(ranks), max(ranks))]
    true, shuffled = (
        whole_answers(run(tmp_path, groups, renderer, name=str(shuffle), shuffle_ranks=shuffle)[1])
        for shuffle in (0, 1)
    )
    assert {n: [t for t, _ in g] for n, g in true.items()} == {n: [t for t, _ in g] for n, g in shuffled.items()}
    assert {n: sorted(r for _, r in g) for n, g in true.items()} == {
        n: sorted(r for _, r in g) for n, g in shuffled.items()
    }
    assert true != shuffled


def test_one_question_per_row_and_workers_and_batches(tmp_path, renderer, monkeypatch):
    groups = make_groups(150)
    content, packed = run(tmp_path, groups, renderer, one_unit_per_row=True)
    assert len(packed) == content["report"]["kept"]["instances"]
    assert all(len(set(packed.arrays["segment_group"][list(packed.segments(row))])) == 1 for row in range(len(packed)))
    run(tmp_path, groups, renderer, name="one")
    monkeypatch.setattr(chunks, "BATCH_BYTES", 2000)
    run(tmp_path, groups, renderer, name="two", workers=2)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_units_stay_whole_in_any_packing():
    draw = np.random.default_rng(0)
    for _ in range(20):
        sizes = draw.integers(1, 6, 200)
        lengths = draw.integers(1, 20, sizes.sum())
        packing, bound = pack_units(lengths, sizes, RowOptions(128, 1))
        assert sorted(packing.order.tolist()) == list(range(len(lengths)))
        owner = np.repeat(np.arange(200), sizes)
        rows = np.repeat(np.arange(len(packing.row_offsets) - 1), np.diff(packing.row_offsets))
        assert len({(o, r) for o, r in zip(owner[packing.order], rows, strict=True)}) == 200
        assert np.add.reduceat(lengths[packing.order], packing.row_offsets[:-1]).max() <= 128
        assert bound <= len(packing.row_offsets) - 1


def row_of(**change) -> dict:
    return RankedGroup("a", "cmd", (Turn("user", "头痛"),), ("好", "坏"), (0, 1)).to_row() | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [0]}, "one number for each"),
        ({"responses": ["好", ""]}, "response 1 is ''"),
        ({"responses": ["好", None]}, "rank -1 and null go together"),
        ({"responses": ["好"], "ranks": [0]}, "two texts or more"),
        ({"turns": []}, "'turns' holds"),
        ({"responses": ["好", "\ud800"]}, "surrogate"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_nothing_is_left(tmp_path, renderer, change, message):
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (row_of(), row_of(**change))))
    with pytest.raises(InputError, match=f"ranked.jsonl:2: .*{message}"):
        pack_rankings([str(path)], tmp_path / "out", renderer, RankingRowOptions(64, progress=False))
    assert not (tmp_path / "out").exists()


def test_absent_and_overlong_answers_are_counted(tmp_path, renderer):
    groups = [
        RankedGroup("a", "cmd", (Turn("user", "头痛"),), ("好", "坏"), (0, 1)),
        RankedGroup("b", "cmd", (Turn("user", "头痛"),), ("好", None), (0, -1)),
        RankedGroup("c", "cmd", (Turn("user", "头痛"),), (None, None), (-1, -1)),
        RankedGroup("d", "cmd", (Turn("user", "头痛"),), ("好", "坏" * 300), (0, 1)),
    ]
    content, packed = run(tmp_path, groups, renderer)
    assert content["dropped"] == {NO_PAIR: 2, TOO_LONG: 1} and len(packed.segment_offsets) == 3


def test_rows_of_the_other_kind_are_refused(tmp_path, renderer):
    _, packed = run(tmp_path, make_groups(20), renderer)
    config = {"random_seed": 1, "sequence_length": 256, "blend": ([str(packed.folder)], None), "split": "1,0,0"}
    with pytest.raises(InputError, match="packed by tools/pack_rewards.py; this stage takes rows of chimed pack sft"):
        build_packed_datasets(SftDataset, SftDatasetConfig(**config, vocab_size=10**6), (1, 0, 0))
    small = PackedDatasetConfig(**config, vocab_size=5)
    with pytest.raises(InputError, match="the model has 5"):
        build_packed_datasets(RankingDataset, small, (1, 0, 0))
    longer = dataclasses.replace(PackedDatasetConfig(**config, vocab_size=10**6), sequence_length=128)
    with pytest.raises(InputError, match="--seq-length is 128"):
        build_packed_datasets(RankingDataset, longer, (1, 0, 0))


def test_the_command_packs_and_says_what(tmp_path):
    source = write_groups(tmp_path / "ranked.jsonl", make_groups(30))
    flags = ["--input", source, "--tokenizer", write_model(tmp_path), "--sequence-length", 512]
    done = call("pack_rewards.py", *flags, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "questions      30, " in done.stdout and "pairing: adjacent" in done.stdout
    more = ["--pairing", "all", "--shuffle-ranks", "--repeat-prompt"]
    done = call("pack_rewards.py", *flags, "--output", tmp_path / "out", *more)
    assert "pairing: all, ranks shuffled" in done.stdout
    assert not PackedRows(tmp_path / "out").manifest["shared_prompt"]
    done = call_here("pack_rewards.py", *flags, "--output", tmp_path / "o", "--workers", -1)
    assert done.returncode == 2 or done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
