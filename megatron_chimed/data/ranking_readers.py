"""Readers of ranked answers: one row of a file to the turns of a prompt, answers and their preference ranks.

Preference ranks are as in `RankedGroup`: 0 is best, equal ranks are ties, -1 and no text where there is no answer.
Sources: paper, section on data for the reward model (CMD's pairs); the form of published preference sets; our own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data.dialogue_readers import instruction_of, instruction_turns
from megatron_chimed.data.fields import holds, list_of, text_of, type_of
from megatron_chimed.data.messages import LISTS, history_of, messages_of, read_messages, refuse_tools, system_of
from megatron_chimed.data.preferences import HUMAN, answer_of, human_turns, is_whole, shared_prompt, think_block
from megatron_chimed.data.sources import Fault, read_rows
from megatron_chimed.data.turns import RawTurn, Turns
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


def asked_turns(row: dict, question: Turns) -> Turns:
    """Put a row's system field and its history in front of a question."""
    refuse_tools(row)
    return [*system_of(row), *history_of(row), *question]


def cmd_group(row: dict) -> RawGroup:
    """Read a row of CMD (Reward), and of MedicalGPT: {"question", "response_chosen", "response_rejected"}."""
    question = text_of(row, "question")
    turns = asked_turns(row, [("user", question)])
    return _pair(turns, text_of(row, "response_chosen"), text_of(row, "response_rejected"))


def preference_group(row: dict) -> RawGroup:
    """Read {"chosen", "rejected"} beside a prompt (`prompt_turns`), or with the prompt inside both (`shared_prompt`).

    An answer is a text, a message or a list of one; see `answer_of`.
    """
    if all(is_whole(row, field, PROMPTS) for field in ("chosen", "rejected")):
        turns, chosen, rejected = shared_prompt(row)
        return _pair(asked_turns(row, turns), chosen, rejected)
    return _pair(prompt_turns(row), answer_of(row, "chosen"), answer_of(row, "rejected"))


PROMPTS = (*LISTS, "prompt", "instruction", "question", "query")
"""Fields that hold a prompt, the first of them that a row has."""


def prompt_turns(row: dict) -> Turns:
    """Read the prompt that stands beside chosen and rejected answers. Raises InputError."""
    field = next((field for field in PROMPTS if holds(row, field, "chosen")), "conversations")
    if field in LISTS:
        return messages_of(row)
    if field == "instruction":
        return asked_turns(row, instruction_turns(instruction_of(row)))
    if isinstance(row[field], list):
        return asked_turns(row, read_messages(row[field]))
    text = text_of(row, field)
    return asked_turns(row, human_turns(text, f"field {field!r}") if HUMAN.match(text) else [("user", text)])


def swift_group(row: dict) -> RawGroup:
    """Read MS-Swift's {"messages", "rejected_response"}, where the last message is the answer that was chosen."""
    *turns, chosen = [RawTurn(*turn) for turn in messages_of(row)] or [RawTurn("user", "")]
    if chosen.role != "assistant":
        raise InputError(f"not an answer: the last of the messages is the {chosen.role}'s; expected the chosen answer")
    return _pair(turns, think_block(chosen), answer_of(row, "rejected_response"))


def ranked_group(row: dict) -> RawGroup:
    """Read {"responses", "ranks"} beside a "question", or beside "turns" as in `RankedGroup`; absent: null and -1."""
    if "turns" in row:
        turns = [RawTurn(turn.role, turn.text, turn.thinking) for turn in turns_from_row(row["turns"])]
    else:
        turns = asked_turns(row, [("user", text_of(row, "question"))])
    responses, ranks = list_of(row, "responses"), list_of(row, "ranks")
    if len(responses) != len(ranks):
        raise InputError(f"ranks that do not fit: {len(ranks)} ranks for {len(responses)} responses")
    if len(responses) < 2:
        raise InputError(f"too few responses: {len(responses)}, expected two or more")
    for place, (response, rank) in enumerate(zip(responses, ranks, strict=True)):
        if not isinstance(response, str | None):
            raise InputError(f"not a string: response {place} is {type_of(response)}")
        if type(rank) is not int or rank < ABSENT:
            raise InputError(
                f"not a rank: rank {place} is {str(rank)[:40]}; expected 0 (best), 1, ... or -1 (no answer)"
            )
        if (response is None) != (rank == ABSENT):
            raise InputError(f"null and -1 do not go together: response {place} has the rank {rank}")
    return RawGroup(turns, responses, ranks)


def _pair(turns: Turns, chosen: str, rejected: str) -> RawGroup:
    return RawGroup(turns, [chosen, rejected], [0, 1])


READERS = {
    "cmd": RankingReader(read_rows, cmd_group, ("question", "response_chosen", "response_rejected")),
    "preference": RankingReader(read_rows, preference_group, ("chosen", "rejected")),
    "ranked": RankingReader(read_rows, ranked_group, ("responses", "ranks")),
    "swift": RankingReader(read_rows, swift_group, ("messages", "rejected_response")),
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
