"""Answers of a rubric's tasks to judges: the records of a run with their scores, and what the judges have to tell.

Verdicts are kept in a file of the output folder, so that a run that is started again pays for none of them twice
(`judging.judge`). The estimate of their cost is printed before anything is sent.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.catalog import TASKS
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.judging.options import JudgeOptions
from megatron_chimed.judging.rubric import Criterion, Rubric
from megatron_chimed.records import Candidate, Prompt, Turn


def is_judged(task: str) -> bool:
    """Whether a task needs judges."""
    return KINDS[TASKS[task].kind].judged


def require_judge(names: Iterable[str], judge: JudgeOptions | None) -> None:
    """Raises InputError for a task that needs judges where there are none, before a model is loaded."""
    if wanting := [name for name in names if is_judged(name) and judge is None]:
        raise InputError(f"{wanting[0]} is scored by a judge: give --judge FILE.yaml with its model and base_url")


def say_verdicts(name: str, items: list[dict], judge: JudgeOptions) -> None:
    """Print how many verdicts the answers to a task's items will need."""
    count = sum(len(item["rubric"]) for item in items)
    judges = " and ".join(one for one, _ in judge.judges)
    print(f"{name}: {count:,} verdicts on {len(items):,} answers by {judges}", file=sys.stderr, flush=True)


def judge_records(
    records: list[dict], items: list[dict], judge: JudgeOptions, log: Path, run: int
) -> tuple[list[dict], dict[str, Any]]:
    """(the records with their judges' scores, the judges' figures: means by tag, verdicts, agreement).

    items: those of the records and others; run: from 0, verdicts of different runs are apart. An answer that lacks a
    verdict stays unjudged, and is counted. An empty answer meets nothing, so nobody is asked. Raises InputError as
    `judging.judge.score_by_judges`.
    """
    by_id = {item["id"]: item for item in items}
    asked = {record["id"]: by_id[record["id"]] for record in records if record["answer"].strip()}
    if not asked:
        return records, {}
    prompts = {name: Prompt(name, "benchmark", _turns(item["history"])) for name, item in asked.items()}
    answers = {record["id"]: record["answer"] for record in records}
    candidates = [Candidate(run + 1, name, 0, answers[name], 0, True) for name in asked]
    from megatron_chimed.judging.judge import score_by_judges  # openai takes a second to import

    rubrics = {name: _rubric(item) for name, item in asked.items()}
    scores, figures = score_by_judges(judge, candidates, prompts, log, rubrics)
    found = {name: score for (_, name, _), score in scores.items()}
    return [_scored(record, found.get(record["id"])) for record in records], figures


def _turns(history: list[str]) -> tuple[Turn, ...]:
    """Texts, by turns from the user's on."""
    return tuple(Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(history))


def _rubric(item: dict) -> Rubric:
    """The criteria of an item."""
    return tuple(Criterion(one["text"], one["points"], tuple(one["tags"])) for one in item["rubric"])


def _scored(record: dict, score: float | None) -> dict:
    """A record with its score, if it has one."""
    if score is None:
        return record
    return {**record, "scores": {**record["scores"], "score": [score, 1.0], "unjudged": 0.0}}
