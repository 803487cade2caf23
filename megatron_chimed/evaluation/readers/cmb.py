"""CMB: its exam (CMB-Exam), whose test answers lie in a file of their own, and its clinical cases (CMB-Clin).

Source: Wang et al., "CMB: A Comprehensive Medical Benchmark in Chinese", NAACL 2024.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_chimed.data.sources import Fault
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.exams import by_letter, letters_item, located_rows, of_part
from megatron_chimed.evaluation.readers.items import Loaded, load

VAL, TEST, ANSWERS = "CMB-val/*merge.json", "CMB-test/*merge.json", "*test*answer*.json"


def read_cmb(folder: str, part: str = "") -> dict[str, Loaded]:
    """``CMB-val/*merge.json`` for examples, ``CMB-test/*merge.json`` to be answered, anywhere below a folder.

    Rows {"exam_type", "question", "option": {"A": ..., "B": ...}, "answer": "D" or "ABD"}; a group for each of the six
    types of exam. The published test file has no answers: they are those of the file ``*test*answer*.json`` below the
    same folder with the same "id". part: `exams.ONE` for the questions with one right letter. Raises InputError.
    """
    val, test = _the_file(folder, VAL), _the_file(folder, TEST)
    places = sorted(Path(folder).rglob(ANSWERS))
    if len(places) > 1:
        raise InputError(f"{folder}: {len(places)} files {ANSWERS}; expected one, the answers of the test")
    answers = _read_answers(places[0]) if places else {}
    examples = load(located_rows(val), lambda row: _question(row, {}))
    tested = load(located_rows(test), lambda row: _question(row, answers))
    return {"fewshot": of_part(examples, part), "test": of_part(tested, part)}


def _the_file(folder: str, pattern: str) -> Path:
    """The one file below a folder. Raises InputError."""
    found = sorted(Path(folder).rglob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder}: {len(found)} files {pattern}; expected one, as in CMB's archive")
    return found[0]


def _read_answers(path: Path) -> dict[str, str]:
    """{id: letters}. Raises InputError with the place of a row that is none, as the others cannot be trusted then."""
    answers: dict[str, str] = {}
    for where, row in located_rows(path):
        if isinstance(row, Fault):
            raise InputError(f"{where}: {row}")
        name, letters = row.get("id"), row.get("answer")
        if name is None or not isinstance(letters, str) or str(name) in answers:
            raise InputError(f"{where}: id {name!r}, answer {letters!r}; expected an id of its own, and letters")
        answers[str(name)] = letters
    return answers


def _question(row: dict, answers: dict[str, str]) -> dict:
    """The item of a row. Raises InputError with the reason."""
    given, name = row.get("answer"), str(row.get("id"))
    if answers:
        if name not in answers:
            raise InputError(f"id {row.get('id')!r} has no answer in the file of answers")
        given = answers[name]
    item = letters_item(row.get("question"), by_letter(row.get("option")), given)
    kind = row.get("exam_type")
    return {**item, "group": kind if isinstance(kind, str) else ""}


def read_cmb_clin(path: str) -> dict[str, Loaded]:
    """Cases {"title", "description", "QA_pairs": [{"question", "solution"}]}, an item for each question.

    The case and its first question are the first turn; later questions follow the solutions before them, as in the
    published protocol. Raises InputError.
    """
    return {"test": load(_json_rows(path), _case)}


def _json_rows(path: str) -> Iterator[tuple[str, Any]]:
    """(file:number, row or Fault) of a file, or of the one CMB-Clin file in a folder."""
    if Path(path).is_dir():
        path = str(_the_file(path, "*Clin*.json"))
    return located_rows(path)


def _case(row: dict) -> list[dict]:
    """The items of a case. Raises InputError with the reason."""
    pairs, description = row.get("QA_pairs"), row.get("description")
    if not isinstance(description, str) or not description.strip() or not isinstance(pairs, list) or not pairs:
        raise InputError("expected fields description (a text) and QA_pairs (a list)")
    history, items = [], []
    for number, pair in enumerate(pairs, start=1):
        texts = [pair.get(name) if isinstance(pair, dict) else None for name in ("question", "solution")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"QA_pairs, number {number}: expected question and solution, two texts")
        question, solution = map(str.strip, texts)
        asked = question if items else f"{description.strip()}\n{question}"
        items.append({"history": [*history, asked], "reference": solution, "group": f"question {number}"})
        history += [asked, solution]
    return items
