"""Grade answers by a command of the user's, so that a reward that is only gamed shows."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.rejection.store import read_candidates


def grade(command: Sequence[str], answers: Path) -> dict[str, list[float]]:
    """{prompt: the grades of its answers} by ``COMMAND ... ANSWERS``.

    command: "python" as its first word is this Python. It is given a file with rows of `Candidate`, and prints for each
    a line with ``{"prompt", "sample", "grade"}``. Raises InputError when it fails, or leaves an answer out.
    """
    words = [sys.executable if command[0] == "python" else command[0], *command[1:], str(answers)]
    shown = f"external_grader {' '.join(words[1:])}"
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"external_grader {command[0]}: {error.strerror}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"{shown} ended with {done.returncode}: {last[:300]}")
    try:
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        grades = {(row["prompt"], row["sample"]): float(row["grade"]) for row in rows}
    except (ValueError, KeyError, TypeError):
        raise InputError(f'{shown}: expected lines of {{"prompt", "sample", "grade"}}') from None
    values = defaultdict(list)
    for one in read_candidates(answers):
        if (one.prompt, one.sample) not in grades:
            raise InputError(f"{shown}: no grade for sample {one.sample} of {one.prompt}")
        values[one.prompt].append(grades[one.prompt, one.sample])
    return dict(values)
