"""Rubrics: criteria with points, one list for all prompts or HealthBench's list for each.

The score of an answer is the sum of the points of the criteria that it meets, over the sum of the points above 0: 1 for
all that is good and nothing that is bad, below 0 where what is bad weighs more. Only a mean over prompts is clipped to
[0, 1], as in OpenAI's simple-evals (healthbench_eval.py), and never a reward: an answer below 0 is worse than one at 0.
Source: HealthBench, arXiv 2505.08775.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_chimed.config import plain, read_mapping
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import BOM, located, open_input, read_json, read_json_lines
from megatron_chimed.records import Prompt
from megatron_chimed.text.normalise import normalise


@dataclass(frozen=True)
class Criterion:
    """What an answer may do, well or badly (points below 0). tags: by which scores are told apart."""

    text: str
    points: float
    tags: tuple[str, ...] = ()


Rubric = tuple[Criterion, ...]


def score(rubric: Sequence[Criterion], met: Sequence[bool]) -> float | None:
    """Points of what is met over all points above 0; None where there are none, which may be for a tag alone.

    >>> score([Criterion("a", 4.0), Criterion("b", -2.0)], [True, True])
    0.5
    """
    most = sum(one.points for one in rubric if one.points > 0)
    reached = sum(one.points for one, is_met in zip(rubric, met, strict=True) if is_met)
    return reached / most if most else None


def scores_by_tag(rubric: Sequence[Criterion], met: Sequence[bool]) -> dict[str, float]:
    """The score of the criteria of each tag that has points above 0."""
    found = {}
    for tag in {tag for one in rubric for tag in one.tags}:
        part = [(one, is_met) for one, is_met in zip(rubric, met, strict=True) if tag in one.tags]
        found[tag] = score(*zip(*part, strict=True))
    return {tag: value for tag, value in found.items() if value is not None}


def clipped_mean(scores: Sequence[float]) -> float | None:
    """The mean of scores as HealthBench reports it, from 0 to 1; None of nothing."""
    return min(1.0, max(0.0, statistics.fmean(scores))) if scores else None


@dataclass(frozen=True)
class Rubrics:
    """The rubrics of a file: a common one, or one for each prompt, by the prompt's id and by its text."""

    path: str
    common: Rubric = ()
    by_id: Mapping[str, Rubric] = field(default_factory=dict)
    by_text: Mapping[str, Rubric] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str) -> "Rubrics":
        """Of a YAML with ``criteria``, or of HealthBench's form, JSON lines or an array.

        Raises InputError with the place: a file of another form, points that are no number, none above 0, an id twice.
        """
        if Path(path).suffix in (".yaml", ".yml"):
            return cls(path, _read_yaml(path))
        by_id: dict[str, Rubric] = {}
        by_text: dict[str, Rubric] = {}
        for number, row in _rows(path):
            with located(path, number):
                name, rubric = row.get("prompt_id"), read_criteria(row.get("rubrics"))
                if not isinstance(name, str) or name in by_id:
                    raise InputError(f"prompt_id is {name!r}; expected a string that no other row has")
                by_id[name] = rubric
                text = _text_of(_messages(row.get("prompt")))
                by_text[text] = rubric if by_text.get(text, rubric) == rubric else ()  # which one, only an id can tell
        return cls(path, by_id=by_id, by_text=by_text)

    def of(self, prompts: Mapping[str, Prompt]) -> dict[str, Rubric]:
        """The rubric of each prompt, by its id, else by its text. Raises InputError for a prompt that has none."""
        if self.common:
            return dict.fromkeys(prompts, self.common)
        found = {}
        for name, prompt in prompts.items():
            text = _text_of((turn.role, turn.text) for turn in prompt.turns)
            found[name] = self.by_id.get(name) or self.by_text.get(text, ())
        missing = [name for name, rubric in found.items() if not rubric]
        if missing:
            raise InputError(
                f"{self.path}: no rubric for {len(missing)} of {len(found)} prompts, the first of them {missing[0]!r}; "
                "give each one, by its prompt_id or its messages, or a YAML of criteria for all"
            )
        return found


def _read_yaml(path: str) -> Rubric:
    content = read_mapping(path)
    rows = content["criteria"].value if set(content) == {"criteria"} else None
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected one key, criteria: a list of {{criterion, points}}")
    with located(path, content["criteria"].where.rpartition(":")[2]):
        return read_criteria([plain(row) for row in rows])


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(Line, or place in the array from 1; row)."""
    with open_input(path) as file:
        is_array = file.read(64).removeprefix(BOM).lstrip()[:1] == b"["
    if not is_array:
        yield from read_json_lines(path)
        return
    for number, row in enumerate(read_json(path), start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def read_criteria(rows: Any) -> Rubric:
    """The criteria of a list of ``{"criterion", "points", "tags"}``, tags or none. Raises InputError."""
    if not isinstance(rows, list) or not rows:
        raise InputError("expected a list of criteria, each with criterion and points")
    rubric = tuple(_criterion(place, row) for place, row in enumerate(rows, start=1))
    if score(rubric, [False] * len(rubric)) is None:
        raise InputError("no criterion has points above 0; the score is a share of these")
    return rubric


def _criterion(place: int, row: Any) -> Criterion:
    row = row if isinstance(row, dict) else {}
    text, points, tags = row.get("criterion"), row.get("points"), row.get("tags") or []
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"criterion {place} has no text; expected criterion and points")
    if type(points) not in (int, float) or not math.isfinite(points):
        raise InputError(f"criterion {place} has points of {points!r}; expected a number, below 0 for what is bad")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InputError(f"criterion {place} has tags of {tags!r}; expected a list of words")
    return Criterion(text.strip(), float(points), tuple(tags))


def _messages(messages: Any) -> list[tuple[str, str]]:
    """(Role, text) of each message. Raises InputError."""
    try:
        return [(str(one["role"]), normalise(one["content"])) for one in messages]
    except (KeyError, TypeError, AttributeError):
        raise InputError("prompt: expected a list of messages with role and content") from None


def _text_of(messages: Iterable[tuple[str, str]]) -> str:
    """What a conversation is also known by."""
    return "\n".join(f"{role}: {normalise(text)}" for role, text in messages)
