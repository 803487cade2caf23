"""Readers of the published fine-tuning sources: files in, what patient and doctor say in turn out.

A reader has two halves. `rows` yields what one row of a file holds, and is bound to the disk; `turns` makes turns of
one row, is a pure function and runs in worker processes. Roles are "user", "assistant" and "system"; what else happens
to turns (think blocks, cleaning, merging, cutting) is the same for all sources and is done in dialogue_worker.

Sources: paper, section on data for supervised fine-tuning; the formats are those in which the sets are published.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data import dialogue_texts
from megatron_chimed.data.dialogue_texts import inline_turns
from megatron_chimed.data.preprocess import Unusable
from megatron_chimed.data.sources import FORMATS, read_json_rows, read_rows, suffix_of
from megatron_chimed.data.turns import RawTurn, Turns
from megatron_chimed.errors import InputError

NOTHING = ("", "无")  # what people type into a field that they leave empty
MARKS = "?？!！。.，,、；;：: "
SPEAKERS = dict.fromkeys(("human", "user", "patient"), "user") | {"system": "system"}
SPEAKERS |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant", "bot", "model", "doctor"), "assistant")
TOOLS = ("tool", "tool_call", "tool_calls", "tool_response", "function", "function_call", "observation", "ipython")
THINKING = ("reasoning_content", "reasoning", "thinking")  # fields beside an answer's text
LEARN = ("loss", "weight", "train")  # of MS-Swift, OpenAI's fine-tuning format, Axolotl


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


def system_of(row: Any) -> Turns:
    """Make a system turn of a row's field "system", which may be missing or empty: then there is none."""
    text = text_of(row, "system", required=False)
    return [("system", text)] if text else []


def toyhom_turns(row: dict) -> Turns:
    """Read a row ``department,title,ask,answer`` of Chinese-medical-dialogue-data."""
    return _pair(join_question(text_of(row, "title"), text_of(row, "ask")), text_of(row, "answer"))


def cmd_turns(row: dict) -> Turns:
    """Read CMD's {"instruction", "input", "output"}, where a dialogue may stand inside the instruction or the input."""
    fields = (text_of(row, "instruction"), text_of(row, "input", required=False))
    answer, question = text_of(row, "output"), "\n".join(filter(None, fields))
    if any(dialogue_texts.is_inline(field) for field in fields) and answer:
        return [*system_of(row), *inline_turns(question), ("assistant", answer)]
    return [*system_of(row), *_pair(question, answer)]


def multi_turn_turns(row: dict) -> Turns:
    """Read a row as `cmd_turns`; what is no dialogue inside the instruction is refused."""
    fields = (text_of(row, "instruction"), text_of(row, "input", required=False))
    turns = inline_turns("\n".join(filter(None, fields)))
    if not turns:
        raise InputError("no '<user>:' in the instruction; read such rows with cmd")
    _, answer = _pair("", text_of(row, "output"))
    return [*system_of(row), *turns, answer]


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
    return [*system_of(row), *_pair(text_of(row, "prompt"), text_of(row, "response"))]


def sharegpt_turns(row: dict) -> Turns:
    """Read {"conversations": [{"from", "value"}]}, or {"messages": [{"role", "content"}]}, with or without a "system".

    Beside an assistant's text may stand its thinking (`THINKING`) and whether it is to be learnt (`LEARN`). Marks of
    other turns change nothing: those are context in any case. Tools are refused.
    """
    field, speaker, words = "conversations", "from", "value"
    if field not in row and "messages" in row:
        field, speaker, words = "messages", "role", "content"
    if field not in row:
        raise InputError(f"missing key: {field!r}")
    if not isinstance(row[field], list):
        raise InputError(f"not a list: field {field!r} holds {type(row[field]).__name__}")
    if row.get("tools") not in (None, "", "[]", []):
        raise InputError("tools: the row offers some in its field 'tools'; dialogues with tools are not read")
    turns = system_of(row)
    for number, turn in enumerate(row[field], start=1):
        name = text_of(turn, speaker)
        called = [key for key in ("tool_calls", "function_call") if turn.get(key)]
        if called or name.lower() in TOOLS:
            what = f"the field {called[0]!r}" if called else f"the role {name!r}"
            raise InputError(f"tools: turn {number} has {what}; dialogues with tools are not read")
        if name.lower() not in SPEAKERS:
            raise InputError(f"unknown role: turn {number} has {name[:40]!r}; known: {', '.join(SPEAKERS)}")
        role = SPEAKERS[name.lower()]
        text, thinking, learn = text_of(turn, words), thinking_of(turn, role), _is_learnt(turn, number, role)
        turns.append((role, text) if learn and not thinking else RawTurn(role, text, thinking, learn))
    return turns


def thinking_of(message: dict, role: str = "assistant") -> str:
    """Read the thinking that stands in a field beside a message's text; "" without any. Raises InputError."""
    thoughts = {text_of(message, field, required=False) for field in THINKING} - {""}
    if len(thoughts) > 1:
        raise InputError(f"thinking twice: of the fields {', '.join(THINKING)} two hold different texts")
    if thoughts and role != "assistant":
        raise InputError(f"thinking of the {role}: expected a field {' or '.join(THINKING)} beside answers alone")
    return "".join(thoughts)


def _is_learnt(turn: dict, number: int, role: str) -> bool:
    """Read whether an assistant's turn is marked to be learnt, as it is without a mark. Raises InputError."""
    marks = {field: turn[field] for field in LEARN if turn.get(field) is not None}
    for field, value in marks.items():
        if value not in (0, 1):
            raise InputError(f"not a mark: field {field!r} of turn {number} is {str(value)[:40]}; expected true or "
                             "false, 1 or 0")  # fmt: skip
    if len({bool(value) for value in marks.values()}) > 1:
        raise InputError(f"marks that contradict each other: {' and '.join(marks)} of turn {number}")
    return role != "assistant" or all(marks.values())


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
