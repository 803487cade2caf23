"""Packing with each template: answers alone are learnt, system turns stay, both modes learn the same."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.chat_templates import FAMILIES, write_chat_tokenizer
from support.dialogues import make_dialogues, write_dialogues
from support.rankings import whole_answers, write_groups

from megatron_chimed.packing.dialogues import DialogueRowOptions, format_dialogue_rows, pack_dialogues
from megatron_chimed.packing.examples import NOTHING_LEARNT, fit_example, make_examples
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings
from megatron_chimed.records import Dialogue, RankedGroup, Turn
from megatron_chimed.text.bulk import flatten
from megatron_chimed.text.exchange import is_chain
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import load_template
from megatron_chimed.text.tokenizer import load_tokenizer

NAMES = [*FAMILIES, "chimed"]
SYSTEM = Turn("system", "你是医生。")


@pytest.fixture(scope="module")
def renderers(tmp_path_factory) -> dict[str, Renderer]:
    tokenizer = load_tokenizer(write_chat_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    return {name: Renderer(load_template(name), tokenizer) for name in NAMES}


def made(count: int = 30) -> list[Dialogue]:
    """Random dialogues, each second one with a system turn; one answer in five is context alone."""
    found = []
    for number, one in enumerate(make_dialogues(count)):
        turns = [
            Turn(turn.role, turn.text, learn=turn.role == "user" or (number + place) % 5 > 1)
            for place, turn in enumerate(one.turns)
        ]
        found.append(Dialogue(one.id, one.source, (*([SYSTEM] if number % 2 else []), *turns)))
    return found


def segments(folder: Path) -> list[tuple[list[int], list[int]]]:
    """(tokens, mask) of each segment of packed rows, in the order of dialogues."""
    packed = PackedRows(folder)
    bounds = zip(packed.segment_offsets, packed.segment_offsets[1:], strict=False)
    found = [(packed.tokens[a:b].tolist(), packed.loss_mask[a:b].tolist()) for a, b in bounds]
    order = np.argsort(packed.arrays["segment_dialogue"], kind="stable")
    return [found[place] for place in order]


def targets(parts: list[tuple[list[int], list[int]]]) -> Counter:
    """How often each (tokens before it, token) is learnt."""
    return Counter((tuple(ids[:n]), ids[n]) for ids, mask in parts for n in np.flatnonzero(mask).tolist())


@pytest.mark.parametrize("name", NAMES)
def test_both_modes_learn_the_same_and_answers_alone(tmp_path, renderers, name):
    renderer, dialogues = renderers[name], made()
    source = write_dialogues(tmp_path / "in.jsonl", dialogues)
    found, contents = {}, {}
    for mode in ("whole", "per-turn"):
        options = DialogueRowOptions(4096, progress=False, mode=mode)
        contents[mode] = pack_dialogues([str(source)], tmp_path / mode, renderer, options)
        found[mode] = targets(segments(tmp_path / mode))
    assert found["whole"] == found["per-turn"] and max(found["whole"].values()) == 1
    learnt = [turn.text for one in dialogues for turn in one.turns if turn.role == "assistant" and turn.learn]
    assert sum(token == renderer.end_id for _, token in found["whole"].elements()) == len(learnt)
    tokens = [number for _, number in sorted(found["whole"].elements(), key=lambda one: len(one[0]))]
    size = sum(len(renderer.tokenizer.encode(text.strip())) for text in learnt)
    assert size <= len(tokens) <= size + 4 * len(learnt), "answers, their ends, and what a space in front may add"
    per_turn = contents["whole"]["report"].get("per_turn", {}).get("dialogues", 0)
    several = sum(len(one.turns) > 3 for one in dialogues)
    assert per_turn == (several if name == "qwen3" else 0)
    assert ("per turn" in format_dialogue_rows(contents["whole"])) == (name == "qwen3")
    assert json.loads((tmp_path / "whole/manifest.json").read_text())["template"] == renderer.template.to_row()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_of_a_long_dialogue_is_rendered_as_one_that_begins_there(renderers, name):
    """The system turn stays when the oldest exchanges go, in front of the first of those that are left."""
    renderer = renderers[name]
    texts = [f"{n}头痛发热三次" * 3 for n in range(8)]
    turns = [Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    whole = {start: renderer.encode_exchanges([(SYSTEM, *turns[start:])])[0] for start in (0, 2, 4, 6)}
    sizes = set()
    for mode in ("whole", "per-turn", "last"):
        for limit in range(40, 400, 3):
            (*_, example) = make_examples(whole[0], mode)
            counts = Counter()
            fitted = fit_example(example, limit, renderer, counts)
            if fitted is None or counts["cut", "tokens"]:
                continue
            left_out = next(
                start
                for start in whole
                for one in [list(make_examples(whole[start], mode))[-1]]
                if one.num_tokens == len(fitted.tokens)
            )
            expected = list(make_examples(whole[left_out], mode))[-1]
            assert fitted.tokens.tolist() == fit_example(expected, 10**6, renderer, Counter()).tokens.tolist()
            assert SYSTEM.text in renderer.tokenizer.decode(fitted.tokens)
            sizes.add(left_out)
    assert sizes == {0, 2, 4, 6}


def test_an_answer_that_is_not_to_be_learnt_is_context(tmp_path, renderers):
    first = [Turn("user", "头痛"), Turn("assistant", "服用", learn=False)]
    turns = [*first, Turn("user", "发热"), Turn("assistant", "检查")]
    dialogues = [
        Dialogue("a:1", "a", tuple(turns)),
        Dialogue("a:2", "a", tuple(turns[:2])),
        Dialogue("a:3", "a", (*turns[2:], *turns[:2])),
    ]
    source = write_dialogues(tmp_path / "in.jsonl", dialogues)
    renderer = renderers["chatml"]
    expected = {"whole": (3, 1, 4), "per-turn": (3, 1, 4), "last": (3, 2, 2)}
    for mode, (instances, dropped, learnt) in expected.items():
        options = DialogueRowOptions(128, progress=False, mode=mode)
        content = pack_dialogues([str(source)], tmp_path / mode, renderer, options)
        assert content["report"]["in"]["instances"] == instances and content["dropped"] == {NOTHING_LEARNT: dropped}
        parts = segments(tmp_path / mode)
        assert sum(sum(mask) for _, mask in parts) == content["report"]["kept"]["trained"] == learnt
        assert all("服用" not in renderer.tokenizer.decode(np.array(ids)[np.array(mask) == 1]) for ids, mask in parts)


@pytest.mark.parametrize("name", NAMES)
def test_all_answers_of_a_question_stand_behind_its_system_turn(tmp_path, renderers, name):
    renderer = renderers[name]
    turns = tuple(Turn(("user", "assistant")[n % 2], f"{n}头痛发热三次" * 3) for n in range(5))
    group = RankedGroup("a:1", "a", (SYSTEM, *turns), ("检查", "服用", "三次"), (0, 1, 2))
    prompts = {start: renderer.render_prompt((SYSTEM, *turns[start:])).tolist() for start in (0, 2, 4)}
    source, left = write_groups(tmp_path / "in.jsonl", [group]), set()
    for limit in [len(prompt) + 20 for prompt in prompts.values()]:
        pack_rankings([str(source)], tmp_path / str(limit), renderer, RankingRowOptions(limit, progress=False))
        packed = PackedRows(tmp_path / str(limit))
        sizes = packed.arrays["segment_answer"].tolist()
        for (ids, _), size in zip(whole_answers(packed)[0], sizes, strict=True):
            assert ids[-1] == renderer.end_id and ids[:-size] in prompts.values()
            left |= {start for start, prompt in prompts.items() if prompt == ids[:-size]}
    assert left == {0, 2, 4}


def test_a_chain_is_what_holds_each_answer_as_it_is_learnt(renderers):
    turns = [Turn("user", "头痛"), Turn("assistant", "服用"), Turn("user", "发热"), Turn("assistant", "检查")]
    chains = {name for name in NAMES if is_chain(renderers[name].encode_exchanges([turns])[0])}
    assert chains == set(NAMES) - {"qwen3"}


class Characters:
    """A tokenizer of characters: an id is a code point."""

    vocab_size, bos_id, eos_id, pad_id, fingerprint = 1 << 16, 1, 2, None, ""

    def encode_flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return flatten([[ord(character) for character in text] for text in texts])


def test_rows_of_the_released_format_are_what_they_were_before_there_were_slots():
    """Recorded from the renderer of plain texts: tokens and masks of all modes, uncut and cut."""
    renderer, digest, count = Renderer(load_template(), Characters()), hashlib.sha256(), 0
    for dialogue in make_dialogues(60):
        for mode in ("whole", "per-turn", "last"):
            for limit in (150, 400, 10**6):
                for example in make_examples(renderer.encode_exchanges([dialogue.turns])[0], mode):
                    fitted = fit_example(example, limit, renderer, Counter())
                    if fitted is not None:
                        digest.update(fitted.tokens.astype("<i4").tobytes() + fitted.loss_mask.tobytes())
                        count += 1
    assert count == 924
    assert digest.hexdigest() == "5235c25376f0f6b5f7a3d87280eb80ead93f54c133ff8d23cf9cac1ef03a1a70"
