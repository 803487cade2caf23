"""Questions and dialogues that are answered freely: ChiMed's pages and MC's dialogues, in their published formats."""

from collections.abc import Iterator
from typing import Any

from megatron_chimed.data.dialogue_readers import READERS
from megatron_chimed.data.dialogue_worker import arrange
from megatron_chimed.data.turns import RawTurn
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.items import Loaded, load


def read_chimed(path: str) -> dict[str, Loaded]:
    """ChiMed's question pages, an item each; the reference is the adopted answer, else the recommended, else the first.

    Raises InputError.
    """
    return {"test": load(_rows("chimed", path), _of_page)}


def read_mc(path: str) -> dict[str, Loaded]:
    """MC's .dialog file, an item for each answer of a doctor: what was said before is the prompt, the answer the
    reference. Messages of one speaker in a row are one turn, as in the training data. Raises InputError.

    Source: paper, section on data ("history and the patient's latest utterance = prompt, the doctor's answer =
    response").
    """
    return {"test": load(_rows("mc", path), _of_dialogue)}


def _rows(reader: str, path: str) -> Iterator[tuple[str, Any]]:
    """(file:line, row or Fault)."""
    return ((f"{path}:{line}", row) for line, row in READERS[reader].rows(path))


def _of_page(row: dict) -> dict:
    """The item of a page."""
    items = _answers(READERS["chimed"].turns(row))
    department = row.get("department")
    return {**items[0], "group": department.rpartition(">")[2] if isinstance(department, str) else ""}


def _of_dialogue(block: str) -> list[dict]:
    """The items of a dialogue."""
    return _answers(READERS["mc"].turns(block))


def _answers(turns: list[tuple[str, str]]) -> list[dict]:
    """{"history": [texts, by turns from the patient's on], "reference"} of each answer. Raises InputError."""
    for _, text in turns:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("bytes that are no characters of the file's encoding") from None
    arranged, _ = arrange([RawTurn(role, text.strip()) for role, text in turns])
    texts = [turn.text for turn in arranged]
    return [{"history": texts[:end], "reference": texts[end]} for end in range(1, len(texts), 2)]
