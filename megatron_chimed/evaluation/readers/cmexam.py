"""CMExam's tables of questions, of which some have several right letters.

Source: Liu et al., "Benchmarking Large Language Models on CMExam", NeurIPS 2023.
"""

import re
import string
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.exams import letters_item, located_rows, of_part
from megatron_chimed.evaluation.readers.items import Loaded, load

TESTS = ("test_with_annotations.csv", "test.csv")
GROUPS = ("Medical Discipline", "医学学科")
"""The annotation by which figures are told apart, where the table has it."""

_OPTION = re.compile(r"^\s*([A-Z])\s*[.、．:：)）\s]\s*(.*)$")


def read_cmexam(folder: str, part: str = "") -> dict[str, Loaded]:
    """``val.csv`` for examples, ``test_with_annotations.csv`` (or ``test.csv``) to be answered.

    Columns Question, Options, Answer ("C", "ABD"), and others; the options are lines "A 胃炎" of one cell. part:
    `exams.ONE` for the questions with one right letter. Raises InputError.
    """
    root = Path(folder)
    test = next((root / name for name in TESTS if (root / name).is_file()), root / TESTS[0])
    loaded = {
        name: load(located_rows(path), _question) for name, path in (("fewshot", root / "val.csv"), ("test", test))
    }
    return {name: of_part(one, part) for name, one in loaded.items()}


def _question(row: dict) -> dict:
    """The item of a row. Raises InputError with the reason."""
    missing = [name for name in ("Question", "Options", "Answer") if name not in row]
    if missing:
        raise InputError(f"no column {missing[0]}; expected Question, Options and Answer")
    group = next((row[name] for name in GROUPS if row.get(name)), "")
    return {**letters_item(row["Question"], split_options(row["Options"]), row["Answer"]), "group": group.strip()}


def split_options(cell: Any) -> list[str]:
    """The texts of the options "A ..." to "E ..." in a cell, a line each; a line without a letter goes on with the one
    before it. Raises InputError where a letter is missing.

    >>> split_options("A 心\\nB、肝\\nC. 脾")
    ['心', '肝', '脾']
    """
    options: list[str] = []
    for line in str(cell or "").strip().splitlines():
        match = _OPTION.match(line)
        if match and match[1] == string.ascii_uppercase[len(options) : len(options) + 1]:
            options.append(match[2].strip())
        elif options and not match:
            options[-1] += "\n" + line.strip()
        elif line.strip():
            raise InputError(f"option {line.strip()!r} where {string.ascii_uppercase[len(options)]} is expected"[:200])
    return options
