"""Thinking and system turns on their way through a round: sampled, scored, selected and packed."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.chatml import chatml_renderer, write_chatml
from support.rankings import whole_answers

from megatron_chimed.inference.request import Generated
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings
from megatron_chimed.records import Candidate, Dialogue, Prompt, RankedGroup, Turn
from megatron_chimed.rejection.generator import build_requests
from megatron_chimed.rejection.scorers.reward_model import sequences_of
from megatron_chimed.rejection.select import Filters, Rule
from megatron_chimed.rejection.steps import pack, select
from megatron_chimed.rejection.store import write_candidates

TURNS = (Turn("system", "你是医生"), Turn("user", "头痛"), Turn("assistant", "多久"), Turn("user", "三次"))
PROMPT = Prompt("p0", "test", TURNS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chatml(tmp_path_factory.mktemp("chatml") / "tokenizer", special=True)


@pytest.fixture
def renderer(folder):
    return chatml_renderer(folder, think=True)


def sampled(renderer, answer: Turn, length: int | None = None) -> Candidate:
    """The candidate of a model that says just this, or its first tokens."""
    tokens, mask = renderer.render(Dialogue("a", "s", (*TURNS, answer)))
    (request,) = build_requests([PROMPT], renderer, round=1, n=1, seed=(0,))
    start = int(np.flatnonzero(mask)[0])
    if answer.thinking:  # one without is trained behind an empty block, which is no part of this prompt
        assert request.tokens == tokens[:start].tolist()
    return request.candidate(Generated(tokens[start:][:length].tolist(), length is None), renderer)


def test_a_sample_is_an_answer_with_its_thinking_apart(renderer):
    answer = Turn("assistant", "建议检查", "先问病史")
    one = sampled(renderer, answer)
    assert (one.response, one.thinking, one.finished) == ("建议检查", "先问病史", True)
    (request,) = build_requests([PROMPT], renderer, round=1, n=1, seed=(0,))
    text = request.candidate(Generated([], True, "<think>\n先问病史\n</think>\n\n建议检查", 9), renderer)
    assert (text.response, text.thinking, text.num_tokens) == ("建议检查", "先问病史", 9)
    assert sampled(renderer, answer, 5).response == ""  # still thinking; dropped as empty


def test_the_score_is_of_what_the_reward_model_learns_from(renderer, tmp_path):
    group = RankedGroup("g", "s", TURNS, ("建议检查", "服用"), (0, 1))
    (tmp_path / "g.jsonl").write_text(json.dumps(group.to_row()) + "\n")
    options = RankingRowOptions(256, progress=False)
    pack_rankings([str(tmp_path / "g.jsonl")], tmp_path / "packed", renderer, options)
    packed = PackedRows(tmp_path / "packed")
    learnt = [tokens for tokens, _ in whole_answers(packed)[0]]
    answers = [Turn("assistant", "建议检查", "先问病史"), Turn("assistant", "服用")]
    found = sequences_of([sampled(renderer, one) for one in answers], {"p0": PROMPT}, renderer)
    assert sorted(found) == sorted(learnt) and found[0] != found[1]


@pytest.mark.parametrize("thinking", ["train", "mask", "drop"])
def test_a_selected_answer_is_packed_with_its_thinking_as_the_configuration_says(folder, renderer, tmp_path, thinking):
    answer = Turn("assistant", "建议检查", "先问病史")
    config = SimpleNamespace(
        selection=Rule(), filters=Filters(), paths=SimpleNamespace(control=False, seed=1, tokenizer=str(folder))
    )
    ctx = SimpleNamespace(
        config=config, number=1, sets=("selected",), prompts={"p0": PROMPT}, rendering={}, pairs=False,
        shape=SimpleNamespace(sequence_length=256), renderer=chatml_renderer(folder, think=True, thinking=thinking),
        file=lambda name: tmp_path / name, files=lambda pattern: [tmp_path / pattern.format("selected")],
    )  # fmt: skip
    one = sampled(renderer, answer)
    write_candidates(tmp_path / "scored.jsonl", [replace(one, reward=1.0)])
    select.run(ctx, "")
    (row,) = [json.loads(line) for line in (tmp_path / "selected.dialogues.jsonl").read_text().splitlines()]
    assert Dialogue.from_row(row).turns == (*TURNS, answer)
    pack.run(ctx, "")
    assert pack.settings(ctx)["thinking"] == thinking
    packed = PackedRows(tmp_path / "packed/selected")
    learnt = renderer.tokenizer.decode(packed.tokens[packed.loss_mask == 1]).split()
    assert learnt == (["先问病史", "建议检查"] if thinking == "train" else ["建议检查"])
    assert ("先问病史" in renderer.tokenizer.decode(packed.tokens)) == (thinking != "drop")
