"""Scores by a command of the user's: rules in any language, as a scorer, and as a grader that shows whether a reward is
only gamed.

It is called as ``COMMAND ... ANSWERS``; "python" as its first word is this Python. ANSWERS is a file of JSON lines,
rows of `Candidate`, and with a scorer or a ``grader:`` each has the ``turns`` of its prompt as well. For each row the
command prints a line with ``{"prompt", "sample", "grade"}``, in any order; a grade of null is an answer that it cannot
tell anything about: it has no score, which is counted, and is never a 0.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json_lines
from megatron_chimed.records import Candidate, Prompt, turns_to_row
from megatron_chimed.rejection.store import Key, read_candidates


def grade(command: Sequence[str], answers: Path) -> dict[str, list[float]]:
    """{prompt: the grades of its answers} of a file with rows of `Candidate`, for ``external_grader``.

    Raises InputError as `run_command`.
    """
    candidates = read_candidates(answers)
    found = run_command(command, answers, candidates, "external_grader")
    values = defaultdict(list)
    for one in candidates:
        if (score := found[one.key]) is not None:
            values[one.prompt].append(score)
    return dict(values)


def score_by_command(
    command: Sequence[str], candidates: Sequence[Candidate], prompts: Mapping[str, Prompt]
) -> dict[Key, float | None]:
    """The score of each candidate. Raises InputError as `run_command`."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.jsonl"
        rows = (one.to_row() | {"turns": turns_to_row(prompts[one.prompt].turns)} for one in candidates)
        write_json_lines(answers, rows)
        return run_command(command, answers, candidates, "rules")


def run_command(
    command: Sequence[str], answers: Path, candidates: Sequence[Candidate], name: str
) -> dict[Key, float | None]:
    """The score of each candidate of a file, by the command.

    name: of the setting, for messages. Raises InputError, one line, when the command fails, prints what is no line of
    the form, a number that is not finite, a line for what is no answer, two lines for one, or none.
    """
    words = [sys.executable if command[0] == "python" else command[0], *command[1:], str(answers)]
    shown = f"{name} {' '.join(' '.join(command).split())[:200]}"
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"{name} {command[0]}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{shown}: what it prints is no UTF-8") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"{shown} ended with {done.returncode}: {last[:300]}")
    keys = {(one.prompt, one.sample): one.key for one in candidates}
    scores: dict[Key, float | None] = {}
    for number, line in enumerate(done.stdout.splitlines(), start=1):
        if line.strip():
            place, score = _read(line, f"{shown}: line {number}")
            if place not in keys:
                raise InputError(f"{shown}: line {number}: there is no sample {place[1]} of {place[0]}")
            if keys[place] in scores:
                raise InputError(f"{shown}: line {number}: a second grade for sample {place[1]} of {place[0]}")
            scores[keys[place]] = score
    for one in candidates:
        if one.key not in scores:
            raise InputError(f"{shown}: no grade for sample {one.sample} of {one.prompt}")
    return scores


def _read(line: str, where: str) -> tuple[tuple[Any, Any], float | None]:
    """((Prompt, sample), grade) of a printed line. Raises InputError."""
    try:
        row = json.loads(line)
        prompt, sample, score = row["prompt"], row["sample"], row["grade"]
        place, score = (str(prompt), int(sample)), None if score is None else float(score)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f'{where}: expected lines of {{"prompt", "sample", "grade"}}, found {line[:60]!r}') from None
    if score is not None and not math.isfinite(score):
        raise InputError(f"{where}: the grade {score} is no finite number; print null where there is none")
    return place, score
