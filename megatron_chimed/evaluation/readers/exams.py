"""Multiple-choice questions in the formats in which C-Eval, CMMLU and MedQA (MCMLE) are published.

What is no question is a fault with file and line; nothing is left out in silence.
"""

import re
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_chimed.data.sources import read_rows
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.items import Loaded, load

CEVAL_SUBJECTS = {"basic_medicine": "基础医学", "clinical_medicine": "临床医学"}
CMMLU_SUBJECTS = {
    "anatomy": "解剖学",
    "clinical_knowledge": "临床知识",
    "college_medicine": "大学医学",
    "genetics": "遗传学",
    "nutrition": "营养学",
    "traditional_chinese_medicine": "中医中药",
    "virology": "病毒学",
}


def read_ceval(folder: str, subject: str) -> dict[str, Loaded]:
    """``dev/SUBJECT_dev.csv`` for examples, and ``val/SUBJECT_val.csv`` to be answered, as in C-Eval's archive.

    Columns id, question, A, B, C, D, answer (and explanation in dev). The published test split has no answers; where
    there is no val, ``test/SUBJECT_test.csv`` is read, if it has them. Raises InputError.
    """
    root = Path(folder)
    candidates = [root / split / f"{subject}_{split}.csv" for split in ("val", "test")]
    test = next((path for path in candidates if path.is_file()), candidates[0])
    read = _of_columns("question", "answer")
    return {"fewshot": _read(root / "dev" / f"{subject}_dev.csv", subject, read), "test": _read(test, subject, read)}


def read_cmmlu(folder: str, subject: str) -> dict[str, Loaded]:
    """``dev/SUBJECT.csv`` and ``test/SUBJECT.csv``: a column without a name, Question, A, B, C, D, Answer.

    Raises InputError.
    """
    read = _of_columns("Question", "Answer")
    splits = {"fewshot": "dev", "test": "test"}
    return {name: _read(Path(folder) / split / f"{subject}.csv", subject, read) for name, split in splits.items()}


def read_mcmle(folder: str, subject: str = "mcmle") -> dict[str, Loaded]:
    """MedQA's Mainland folder: ``dev.jsonl`` and ``test.jsonl``, or names that end so (the folder 4_options).

    Rows {"question", "options": {"A": ..., "B": ...}, "answer", "answer_idx": "B"}, four options or five. Raises
    InputError.
    """
    loaded = {}
    for name, split in (("fewshot", "dev"), ("test", "test")):
        paths = sorted(Path(folder).glob(f"*{split}.jsonl"))
        if len(paths) != 1:
            raise InputError(
                f"{folder}: {len(paths)} files *{split}.jsonl; expected one, as in MedQA's Mainland folder"
            )
        loaded[name] = _read(paths[0], subject, _of_medqa)
    return loaded


def _read(path: Path, subject: str, read: Callable[[dict], dict]) -> Loaded:
    """The questions of a file. Raises InputError if it holds none."""
    return load(located_rows(path), read, subject=subject)


def located_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(file:line, row or Fault)."""
    return ((f"{path}:{line}", row) for line, row in read_rows(path))


def _of_columns(question: str, answer: str) -> Callable[[dict], dict]:
    """What makes a question of a CSV row with these columns."""

    def read(row: dict) -> dict:
        return choice_item(row.get(question), [row.get(letter) for letter in "ABCD"], row.get(answer))

    return read


def _of_medqa(row: dict) -> dict:
    """A question of MedQA's row."""
    return choice_item(row.get("question"), by_letter(row.get("options")), row.get("answer_idx"))


def choice_item(question: Any, options: list, letter: Any) -> dict:
    """{"question", "options": texts in order, "answer": index from 0}. Raises InputError with the reason."""
    question, options = _asked(question, options)
    letters = string.ascii_uppercase[: len(options)]
    if not isinstance(letter, str) or letter.strip().upper() not in tuple(letters):
        raise InputError(f"answer {letter!r}; expected one of {', '.join(letters)} (a test split without answers?)")
    return {"question": question, "options": options, "answer": letters.index(letter.strip().upper())}


def letters_item(question: Any, options: list, right: Any) -> dict:
    """{"question", "options": texts in order, "answers": indices from 0, "answer": the first of them} of a question
    with one right letter or several ("D", "ABD", "A,B"). Raises InputError with the reason.

    Options without a text at the end are none, as some files fill all questions up to five. One character is a text.

    >>> letters_item("属火的脏是", ["肝", "心", "脾", ""], "B")
    {'question': '属火的脏是', 'options': ['肝', '心', '脾'], 'answers': [1], 'answer': 1}
    """
    while options and (options[-1] is None or not str(options[-1]).strip()):
        options = options[:-1]
    question, options = _asked(question, options)
    letters = string.ascii_uppercase[: len(options)]
    given = re.sub(r"[\s,，、;；]", "", right).upper() if isinstance(right, str) else ""
    if not given or not set(given) <= set(letters) or len(set(given)) < len(given):
        raise InputError(f"answer {right!r}; expected letters of {letters}, each once (a test split without answers?)")
    answers = sorted(map(letters.index, given))
    return {"question": question, "options": options, "answers": answers, "answer": answers[0]}


def _asked(question: Any, options: list) -> tuple[str, list[str]]:
    """Question and options without space at their ends. Raises InputError where one is missing."""
    if not isinstance(question, str) or not question.strip():
        raise InputError("no question")
    if len(options) < 2 or not all(isinstance(option, str) and option.strip() for option in options):
        raise InputError(f"expected an option behind each letter, found {options!r}"[:200])
    return question.strip(), [option.strip() for option in options]


def by_letter(options: Any) -> list:
    """The texts of {"A": ..., "B": ..., ...}, in order. Raises InputError for other keys."""
    if not isinstance(options, dict) or list(options) != list(string.ascii_uppercase[: len(options)]):
        raise InputError("the options are no object with the keys A, B, C, ...")
    return list(options.values())


ONE = "one"
"""The part of an exam that has one right letter, which likelihoods can decide."""


def of_part(loaded: Loaded, part: str) -> Loaded:
    """All of an exam's questions, or for `ONE` those with one right letter."""
    if part != ONE:
        return loaded
    return replace(loaded, items=[item for item in loaded.items if len(item["answers"]) == 1])
