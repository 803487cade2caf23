"""Readers of the published fine-tuning sources: files in, what patient and doctor say in turn out.

A reader has two halves. `rows` yields what one row of a file holds, and is bound to the disk; `turns` makes turns of
one row, is a pure function and runs in worker processes. Roles are "user", "assistant" and "system"; what else happens
to turns (cleaning, merging, cutting) is the same for all sources and is done in dialogue_worker.

Sources: paper, section on data for supervised fine-tuning; the formats are those in which the sets are published.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data import dialogue_texts
from megatron_chimed.data.dialogue_texts import Turns, inline_turns
from megatron_chimed.data.preprocess import Unusable
from megatron_chimed.data.sources import FORMATS, read_json_rows, read_rows, suffix_of
from megatron_chimed.errors import InputError

NOTHING = ("", "无")  # what people type into a field that they leave empty
MARKS = "?？!！。.，,、；;：: "
SPEAKERS = dict.fromkeys(("human", "user", "patient"), "user") | {"system": "system"}
SPEAKERS |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant", "bot", "model", "doctor"), "assistant")


class Unanswered(Unusable):
    """A row in good form that holds no question with an answer. The message is the reason."""


class Reader(NamedTuple):
    """rows(path) yields (line or number from 1, row or Fault) and raises InputError on a file that cannot be read;
    turns(row) raises InputError with the reason why a row makes no dialogue."""

    rows: Callable[[str | Path], Iterator[tuple[int, Any]]]
    turns: Callable[[Any], Turns]


def text_of(row: Any, field: str, *, required: bool = True) -> str:
    """Read a text field of a row, stripped; "" where it is null, or missing and not required. Raises InputError."""
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type(row).__name__}")
    if field not in row and required:
        raise InputError(f"missing key: {field!r}")
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"not a string: field {field!r} holds {type(value).__name__}")
    return value.strip()


def join_question(title: str, body: str) -> str:
    """Join a page's title and question; the title is left out where the question begins with it.

    >>> join_question("胃炎怎么办？", "胃炎怎么办，急！"), join_question("胃炎怎么办？", "无")
    ('胃炎怎么办，急！', '胃炎怎么办？')
    """
    if body in NOTHING:
        return title
    if title in NOTHING or body.startswith(title.rstrip(MARKS)):
        return body
    return f"{title}\n{body}"


def _pair(question: str, answer: str) -> Turns:
    """Make the turns of a question with its answer. Raises Unanswered where there is none."""
    if not answer:
        raise Unanswered("no doctor's answer")
    return [("user", question), ("assistant", answer)]


def toyhom_turns(row: dict) -> Turns:
    """Read a row ``department,title,ask,answer`` of Chinese-medical-dialogue-data."""
    return _pair(join_question(text_of(row, "title"), text_of(row, "ask")), text_of(row, "answer"))


def cmd_turns(row: dict) -> Turns:
    """Read CMD's {"instruction", "input", "output"}, where a dialogue may stand inside the instruction or the input."""
    fields = (text_of(row, "instruction"), text_of(row, "input", required=False))
    answer, question = text_of(row, "output"), "\n".join(filter(None, fields))
    if any(dialogue_texts.is_inline(field) for field in fields) and answer:
        return [*inline_turns(question), ("assistant", answer)]
    return _pair(question, answer)


def multi_turn_turns(row: dict) -> Turns:
    """Read a row as `cmd_turns`; what is no dialogue inside the instruction is refused."""
    fields = (text_of(row, "instruction"), text_of(row, "input", required=False))
    turns = inline_turns("\n".join(filter(None, fields)))
    if not turns:
        raise InputError("no '<user>:' in the instruction; read such rows with cmd")
    _, answer = _pair("", text_of(row, "output"))
    return [*turns, answer]


def chimed_turns(row: dict) -> Turns:
    """Read a page of ChiMed: {"title", "question_content", "answers": [{"adopted", "recommended", "answer"}]}.

    Of the answers that hold text the adopted one is taken, else the recommended, else the first.
    """
    question = join_question(text_of(row, "title"), text_of(row, "question_content"))
    answers = row.get("answers")
    if not isinstance(answers, list):
        raise InputError(f"not a list: field 'answers' holds {type(answers).__name__}")
    written = [answer for answer in answers if text_of(answer, "answer")]
    for flag in ("adopted", "recommended"):
        chosen = [answer for answer in written if str(answer.get(flag)).strip().lower() in ("true", "1", "yes")]
        if chosen:
            return _pair(question, text_of(chosen[0], "answer"))
    return _pair(question, text_of(written[0], "answer") if written else "")


def safety_turns(row: Any) -> Turns:
    """Read a pair {"prompt", "response"} of Safety-Prompts."""
    return _pair(text_of(row, "prompt"), text_of(row, "response"))


def sharegpt_turns(row: dict) -> Turns:
    """Read {"conversations": [{"from", "value"}]}, or {"messages": [{"role", "content"}]}."""
    field, speaker, words = "conversations", "from", "value"
    if field not in row and "messages" in row:
        field, speaker, words = "messages", "role", "content"
    if field not in row:
        raise InputError(f"missing key: {field!r}")
    if not isinstance(row[field], list):
        raise InputError(f"not a list: field {field!r} holds {type(row[field]).__name__}")
    turns = []
    for number, turn in enumerate(row[field], start=1):
        name = text_of(turn, speaker)
        if name.lower() not in SPEAKERS:
            raise InputError(f"unknown role: turn {number} has {name[:40]!r}; known: {', '.join(SPEAKERS)}")
        turns.append((SPEAKERS[name.lower()], text_of(turn, words)))
    return turns


def safety_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Read Safety-Prompts: {category: [rows]}, an array of rows, or JSON lines."""
    return read_json_rows(path, sections=True) if suffix_of(path) == ".json" else read_rows(path)


def meddialog_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Read MedDialog: the processed .json, an array of dialogues, or the raw text under any other ending."""
    if suffix_of(path) == ".json":
        return read_json_rows(path)
    if suffix_of(path) in FORMATS:
        return read_rows(path)
    return dialogue_texts.meddialog_blocks(path)


READERS = {
    "chimed": Reader(read_rows, chimed_turns),
    "cmd": Reader(read_rows, cmd_turns),
    "mc": Reader(dialogue_texts.mc_blocks, dialogue_texts.mc_turns),
    "meddialog": Reader(meddialog_rows, dialogue_texts.meddialog_turns),
    "multi_turn": Reader(read_rows, multi_turn_turns),
    "safety": Reader(safety_rows, safety_turns),
    "sharegpt": Reader(read_rows, sharegpt_turns),
    "toyhom": Reader(read_rows, toyhom_turns),
}
"""By the names that --source takes."""
