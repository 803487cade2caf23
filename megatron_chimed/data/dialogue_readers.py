"""Readers of the published fine-tuning sources: files in, what patient and doctor say in turn out.

A reader has two halves. `rows` yields what one row of a file holds, and is bound to the disk; `turns` makes turns of
one row, is a pure function and runs in worker processes. Roles are "user", "assistant" and "system"; what else happens
to turns (think blocks, cleaning, merging, cutting) is the same for all sources and is done in dialogue_worker.

Sources: paper, section on data for supervised fine-tuning; the formats are those in which the sets are published.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data import dialogue_texts
from megatron_chimed.data.dialogue_texts import NOTHING, inline_turns
from megatron_chimed.data.fields import holds, leave_out, list_of, text_of, type_of
from megatron_chimed.data.messages import history_of, messages_of, read_messages, refuse_tools, system_of, thinking_of
from megatron_chimed.data.preprocess import Unusable
from megatron_chimed.data.sources import FORMATS, read_json_rows, read_rows, suffix_of
from megatron_chimed.data.turns import RawTurn, Turns
from megatron_chimed.errors import InputError

MARKS = "?？!！。.，,、；;：: "


class Unanswered(Unusable):
    """A row in good form that holds no question with an answer. The message is the reason."""


class Reader(NamedTuple):
    """rows(path) yields (line or number from 1, row or Fault) and raises InputError on a file that cannot be read;
    turns(row) raises InputError with the reason why a row makes no dialogue."""

    rows: Callable[[str | Path], Iterator[tuple[int, Any]]]
    turns: Callable[[Any], Turns]


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


def answer_with(question: Turns, row: dict, answer: str) -> Turns:
    """Put a row's system field and its history in front of a question, and its answer behind.

    Thinking in a field of the row is the answer's. Raises Unanswered where there is no answer.
    """
    refuse_tools(row)
    if not answer:
        raise Unanswered("no doctor's answer")
    thinking = thinking_of(row)
    last = RawTurn("assistant", answer, thinking) if thinking else ("assistant", answer)
    return [*system_of(row), *history_of(row), *question, last]


def toyhom_turns(row: dict) -> Turns:
    """Read a row ``department,title,ask,answer`` of Chinese-medical-dialogue-data."""
    question = join_question(text_of(row, "title"), text_of(row, "ask"))
    return answer_with([("user", question)], row, text_of(row, "answer"))


def instruction_of(row: Any) -> tuple[str, str]:
    """Read Alpaca's instruction and input."""
    return text_of(row, "instruction"), text_of(row, "input", required=False)


def instruction_turns(fields: tuple[str, ...]) -> Turns:
    """Make the turns of instruction and input, in one of which a dialogue may stand."""
    question = "\n".join(filter(None, fields))
    return inline_turns(question) if any(map(dialogue_texts.is_inline, fields)) else [("user", question)]


def cmd_turns(row: dict) -> Turns:
    """Read {"instruction", "input", "output"} of CMD and Alpaca, with or without "history" and "system"."""
    fields, answer = instruction_of(row), text_of(row, "output")
    return answer_with(instruction_turns(fields) if answer else [], row, answer)


def multi_turn_turns(row: dict) -> Turns:
    """Read a row as `cmd_turns`; what is no dialogue inside the instruction is refused."""
    turns = inline_turns("\n".join(filter(None, instruction_of(row))))
    if not turns:
        raise InputError("no '<user>:' in the instruction; read such rows with cmd")
    return answer_with(turns, row, text_of(row, "output"))


def chimed_turns(row: dict) -> Turns:
    """Read a page of ChiMed: {"title", "question_content", "answers": [{"adopted", "recommended", "answer"}]}.

    Of the answers that hold text the adopted one is taken, else the recommended, else the first.
    """
    question = join_question(text_of(row, "title"), text_of(row, "question_content"))
    answers = row.get("answers")
    if not isinstance(answers, list):
        raise InputError(f"not a list: field 'answers' holds {type_of(answers)}")
    written = [one for one in ((text_of(answer, "answer"), _preference(answer)) for answer in answers) if one[0]]
    leave_out(row, "answers[].answer", len(written) - 1)
    best, _ = min(written, key=lambda one: one[1], default=("", 0))
    return answer_with([("user", question)], row, best)


def _preference(answer: dict) -> int:
    """The place of an answer's flags in the order in which answers are taken."""
    flags = [str(answer.get(flag)).strip().lower() in ("true", "1", "yes") for flag in ("adopted", "recommended")]
    return flags.index(True) if any(flags) else len(flags)


def safety_turns(row: Any) -> Turns:
    """Read a pair {"prompt", "response"} of Safety-Prompts."""
    question = text_of(row, "prompt")
    return answer_with([("user", question)], row, text_of(row, "response"))


def sharegpt_turns(row: dict) -> Turns:
    """Read {"conversations": [{"from", "value"}]}, or {"messages": [{"role", "content"}]}, with or without a "system".

    See `read_messages`; tools are refused.
    """
    return messages_of(row)


def exchange_turns(row: dict, question: str, answer: str) -> Turns:
    """Read a question and an answer of the fields of these names: texts, or lists of messages."""
    asked, said = row.get(question), row.get(answer)
    if not isinstance(asked, list) and not isinstance(said, list):
        return answer_with([("user", text_of(row, question))], row, text_of(row, answer))
    refuse_tools(row)
    turns = read_messages(list_of(row, question)) if isinstance(asked, list) else [("user", text_of(row, question))]
    turns += read_messages(list_of(row, answer)) if isinstance(said, list) else [("assistant", text_of(row, answer))]
    return [*system_of(row), *history_of(row), *turns]


QUESTIONS, ANSWERS = ("query", "question", "prompt"), ("response", "answer", "completion")
EXCHANGES = [(question, answer) for question in QUESTIONS for answer in ANSWERS]
EXCHANGES += [("Question", "Response"), ("question", "response (content)")]
"""Names of a question and its answer: MS-Swift, TRL and others; medical-o1-reasoning-SFT, Medical-R1-Distill-Data."""

FORMS = {
    ("conversations",): sharegpt_turns,
    ("messages",): sharegpt_turns,
    ("conversation",): sharegpt_turns,
    ("instruction", "output"): cmd_turns,
    ("title", "question_content", "answers"): chimed_turns,
    ("title", "ask", "answer"): toyhom_turns,
    **{names: functools.partial(exchange_turns, question=names[0], answer=names[1]) for names in EXCHANGES},
}
"""By the fields that a row of a form has."""


def auto_turns(row: Any) -> Turns:
    """Read a row of any of `FORMS`, told by its fields. Raises InputError when they are those of none, or of two."""
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type_of(row)}")
    found = [names for names in FORMS if holds(row, *names)] or [names for names in FORMS if set(names) <= row.keys()]
    shown = ", ".join(map(str, row))[:100]
    if not found:
        raise InputError(f"no form: no reader knows the fields {shown}; rename them to those of a form, such as query "
                         "and response")  # fmt: skip
    if len({FORMS[names] for names in found}) > 1:
        both = " and ".join("+".join(names) for names in found[:2])
        raise InputError(f"two forms: {both} of the fields {shown}; name the reader in the place of auto, or leave "
                         "out the fields of one")  # fmt: skip
    return FORMS[found[0]](row)


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
    "auto": Reader(read_rows, auto_turns),
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
