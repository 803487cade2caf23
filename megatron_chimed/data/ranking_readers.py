"""Readers of ranked answers: one row of a file to the turns of a prompt, answers and their preference ranks.

Preference ranks are as in `RankedGroup`: 0 is best, equal ranks are ties, -1 and no text where there is no answer.
Sources: paper, section on data for the reward model (CMD's pairs); the form of published preference sets; our own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data.dialogue_readers import sharegpt_turns, system_of, text_of, thinking_of
from megatron_chimed.data.sources import Fault, read_rows
from megatron_chimed.data.turns import CLOSING, OPENING, Turns
from megatron_chimed.errors import InputError
from megatron_chimed.records import ABSENT, turns_from_row


class RawGroup(NamedTuple):
    """A group of answers as it stands in its source. Texts may be empty, turns in any order."""

    turns: Turns
    responses: list[str | None]
    preference_ranks: list[int]


class RankingReader(NamedTuple):
    """rows(path) yields (line or number from 1, row or Fault); group(row) raises InputError with the reason why a row
    makes no group; fields: the names by which a row of this form is known."""

    rows: Callable[[str | Path], Iterator[tuple[int, Any]]]
    group: Callable[[Any], RawGroup]
    fields: tuple[str, ...]


def cmd_group(row: dict) -> RawGroup:
    """Read a row of CMD (Reward): {"question", "response_chosen", "response_rejected"}."""
    question = text_of(row, "question")
    turns = [*system_of(row), ("user", question)]
    return _pair(turns, text_of(row, "response_chosen"), text_of(row, "response_rejected"))


def preference_group(row: dict) -> RawGroup:
    """Read {"conversations" (or "messages"), "chosen", "rejected"}: an answer is a text, a message or a list of one."""
    return _pair(sharegpt_turns(row), _answer(row, "chosen"), _answer(row, "rejected"))


def ranked_group(row: dict) -> RawGroup:
    """Read {"responses", "ranks"} beside a "question", or beside "turns" as in `RankedGroup`; absent: null and -1."""
    if "turns" in row:
        turns = [(turn.role, turn.text) for turn in turns_from_row(row["turns"])]
    else:
        turns = [*system_of(row), ("user", text_of(row, "question"))]
    responses, ranks = _list_of(row, "responses"), _list_of(row, "ranks")
    if len(responses) != len(ranks):
        raise InputError(f"ranks that do not fit: {len(ranks)} ranks for {len(responses)} responses")
    if len(responses) < 2:
        raise InputError(f"too few responses: {len(responses)}, expected two or more")
    for place, (response, rank) in enumerate(zip(responses, ranks, strict=True)):
        if not isinstance(response, str | None):
            raise InputError(f"not a string: response {place} is {type(response).__name__}")
        if type(rank) is not int or rank < ABSENT:
            raise InputError(
                f"not a rank: rank {place} is {str(rank)[:40]}; expected 0 (best), 1, ... or -1 (no answer)"
            )
        if (response is None) != (rank == ABSENT):
            raise InputError(f"null and -1 do not go together: response {place} has the rank {rank}")
    return RawGroup(turns, responses, ranks)


def _pair(turns: Turns, chosen: str, rejected: str) -> RawGroup:
    return RawGroup(turns, [chosen, rejected], [0, 1])


def _answer(row: dict, field: str) -> str:
    """Read the text of an answer: a string, {"value"}, {"content"}, or a list of one of them; "" for null.

    Thinking that stands in a field beside it is a think block in front of it.
    """
    value = row.get(field)
    if isinstance(value, list):
        if len(value) != 1:
            raise InputError(f"not one answer: field {field!r} is a list of {len(value)}")
        value = value[0]
    if not isinstance(value, dict):
        return text_of({**row, field: value} if field in row else row, field)
    text, thinking = text_of(value, "value" if "value" in value else "content"), thinking_of(value)
    return f"{OPENING}{thinking}{CLOSING}{text}" if thinking else text


def _list_of(row: dict, field: str) -> list:
    """Read a field that is a list. Raises InputError."""
    if field not in row:
        raise InputError(f"missing key: {field!r}")
    if not isinstance(row[field], list):
        raise InputError(f"not a list: field {field!r} holds {type(row[field]).__name__}")
    return row[field]


READERS = {
    "cmd": RankingReader(read_rows, cmd_group, ("question", "response_chosen", "response_rejected")),
    "preference": RankingReader(read_rows, preference_group, ("chosen", "rejected")),
    "ranked": RankingReader(read_rows, ranked_group, ("responses", "ranks")),
}
"""By the names that --source takes."""


def detect_reader(path: str) -> str:
    """Find the name of the reader of a file, by the fields of its first row that is one. Raises InputError."""
    for line, row in READERS["ranked"].rows(path):
        if not isinstance(row, Fault):
            for name, reader in READERS.items():
                if all(field in row for field in reader.fields):
                    return name
            shown = ", ".join(list(row)[:8])[:100]
            raise InputError(
                f"{path}:{line}: no reader knows the fields {shown}; name one, LABEL:READER=PATH with READER one of "
                f"{', '.join(READERS)}"
            )
    raise InputError(f"{path}: holds no row; expected JSON lines, an array of rows or CSV")
