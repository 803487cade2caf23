"""Prompts of a round: drawn from the dialogues of supervised fine-tuning, without duplicates and evaluation questions.

A dialogue gives one prompt: all that stands before its last answer, which for several turns is a system turn, where
there is one, the history and the latest question. The draw depends on the texts and the seed alone, not on the order of
files or rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_chimed.data.decontamination import OverlapIndex, evaluation_texts
from megatron_chimed.data.dedup import NearDeduplicator
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import located, read_json_lines
from megatron_chimed.records import Prompt, Turn, split_system
from megatron_chimed.rejection.keys import keyed_draw
from megatron_chimed.text.normalise import normalise

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
EVALUATION = "in an evaluation set"
TOO_LONG = "longer than the context leaves room for"
NOT_DRAWN = "not drawn"


class EvaluationTexts:
    """What no prompt may ask: the strings of evaluation files, whole, and their 13-grams (data/decontamination.py)."""

    def __init__(self, texts: Iterable[str]):
        texts = list(texts)
        self._whole = set(map(normalise, texts))
        self._index = OverlapIndex(texts)

    @classmethod
    def read(cls, paths: Iterable[str | Path]) -> "EvaluationTexts":
        """Of files in any form that `data.decontamination.read_texts` takes. Raises InputError."""
        return cls(evaluation_texts(paths))

    def hold(self, prompt: Prompt) -> bool:
        """Whether the question is one of the texts, or a user's turn shares a 13-gram with one."""
        asked = [turn.text for turn in prompt.turns if turn.role == "user"]
        return normalise(asked[-1]) in self._whole or self._index.overlaps_dialogue(asked[0], asked[1:])


def draw_prompts(
    prompts: Iterable[Prompt],
    count: int,
    *,
    seed: int,
    round: int,
    evaluation: EvaluationTexts,
    fits: Callable[[Prompt], bool] = lambda prompt: True,
    near: bool = True,
) -> tuple[list[Prompt], Counter]:
    """(`count` prompts sorted by id, or all that there are; how many were dropped for each reason).

    fits: whether a prompt leaves room for an answer. near: also drop near duplicates of prompts drawn before. Each
    round draws anew. Of prompts with one text, the one with the smallest id stands for all. All are held in memory,
    some 1 GB for a million.
    """
    different: dict[str, Prompt] = {}
    counts: Counter = Counter()
    for prompt in prompts:
        text = normalise("\n".join(turn.text for turn in prompt.turns))
        counts[DUPLICATE] += text in different
        different[text] = min(prompt, different.get(text, prompt), key=lambda one: one.id)
    order = sorted(different, key=lambda text: (keyed_draw(seed, "prompt", round, text), text))
    deduplicator = NearDeduplicator() if near else None
    drawn: list[Prompt] = []
    for place, text in enumerate(order):
        if len(drawn) == count:
            counts[NOT_DRAWN] = len(order) - place
            break
        if evaluation.hold(different[text]):
            counts[EVALUATION] += 1
        elif not fits(different[text]):
            counts[TOO_LONG] += 1
        elif deduplicator and deduplicator.is_duplicate(_compared(different[text])):
            counts[NEAR_DUPLICATE] += 1
        else:
            drawn.append(different[text])
    return sorted(drawn, key=lambda prompt: prompt.id), +counts


def _compared(prompt: Prompt) -> str:
    """What near duplicates are found by: no system turn, by which prompts would be alike where it is long."""
    return normalise("\n".join(turn.text for turn in split_system(prompt.turns)[1]))


def read_prompts(paths: Iterable[str | Path]) -> Iterator[Prompt]:
    """Prompts of JSON lines: rows of `Prompt`; of `Dialogue`, without the last answer; with a field ``question``; or of
    HealthBench, ``{"prompt": [{"role", "content"}], "prompt_id"}``.

    Raises InputError as ``file:line: reason``: a bad row, an id that is there twice.
    """
    seen: set[str] = set()
    for path in paths:
        for number, row in read_json_lines(path):
            with located(path, number):
                prompt = _prompt(row, Path(path))
                if prompt.id in seen:
                    raise InputError(f"id {prompt.id!r} is there twice; ids tell the answers apart")
            seen.add(prompt.id)
            yield prompt


def _prompt(row: dict[str, Any], path: Path) -> Prompt:
    """The prompt of a row; its history is without thinking. Raises InputError with the reason alone."""
    question, turns = row.get("question"), row.get("turns")
    if turns is None and isinstance(question, str) and question.strip():
        turns = [{"role": "user", "text": question}]
        row = {"source": path.stem, **row}
    if turns is None and isinstance(messages := row.get("prompt"), list):
        turns = [{"role": one.get("role"), "text": one.get("content")} for one in messages if isinstance(one, dict)]
        row = {"source": path.stem, "id": row.get("prompt_id"), **row}
    if isinstance(turns, list) and turns[1:] and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
        turns = turns[:-1]
    prompt = Prompt.from_row({**row, "turns": turns})
    return replace(prompt, turns=tuple(Turn(turn.role, turn.text) for turn in prompt.turns))


def question_of(prompt: Prompt) -> str:
    """The user's last turn."""
    return prompt.turns[-1].text


def answered(prompt: Prompt, response: str, thinking: str = "") -> tuple[Turn, ...]:
    """The turns of a prompt and an answer to it."""
    return (*prompt.turns, Turn("assistant", response, thinking))
