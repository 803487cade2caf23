"""Messages of a row to turns: lists of them in each spelling, a history in front, a system field, tools refused."""

from typing import Any

from megatron_chimed.data.fields import holds, list_of, text_of, type_of
from megatron_chimed.data.turns import RawTurn, Turns
from megatron_chimed.errors import InputError

SPEAKERS = dict.fromkeys(("human", "user", "patient"), "user") | {"system": "system"}
SPEAKERS |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant", "bot", "model", "doctor"), "assistant")
TOOLS = ("tool", "tool_call", "tool_calls", "tool_response", "function", "function_call", "observation", "ipython")
THINKING = ("reasoning_content", "reasoning", "thinking", "Complex_CoT", "reasoning (reasoning_content)")
"""Fields beside an answer's text; the last two of medical-o1-reasoning-SFT and Medical-R1-Distill-Data."""

LEARN = ("loss", "weight", "train", "loss_scale")
"""Marks of MS-Swift, OpenAI's fine-tuning format, Axolotl, MS-Swift."""

LISTS = {"conversations": ("from", "value"), "messages": ("role", "content"), "conversation": ("role", "content")}
"""Fields that hold a list of messages, with the usual names of speaker and words; a message may have the others."""

PAIRS = (("human", "assistant"), ("input", "output"))
"""Names in `conversation` where each element is a question with its answer: MS-Swift and Firefly, XTuner."""


def messages_of(row: Any) -> Turns:
    """Read the turns of a row's list of messages, behind its field "system". Raises InputError."""
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type_of(row)}")
    present = [field for field in LISTS if field in row]
    field = next((field for field in present if dict.get(row, field)), present[0] if present else "conversations")
    messages = list_of(row, field)
    refuse_tools(row)
    return [*system_of(row), *read_messages(messages, LISTS[field])]


def read_messages(messages: list, names: tuple[str, str] = LISTS["messages"]) -> Turns:
    """Read the turns of a list of messages. names: of speaker and words. Raises InputError."""
    turns: Turns = []
    for number, message in enumerate(messages, start=1):
        pair = next((pair for pair in PAIRS if holds(message, *pair)), None)
        if pair:
            question, answer = (text_of(message, name) for name in pair)
            turns += [*system_of(message), ("user", question), ("assistant", answer)]
        else:
            turns.append(read_message(message, f"turn {number}", names))
    return turns


def read_message(
    message: Any, where: str, names: tuple[str, str] = LISTS["messages"], role: str = ""
) -> RawTurn | tuple:
    """Read the turn of a message in either spelling. role: of one that does not say whose it is. Raises InputError.

    Beside an assistant's text may stand its thinking (`THINKING`) and whether it is to be learnt (`LEARN`). Marks of
    other turns change nothing: those are context in any case.
    """
    if not isinstance(message, dict):
        raise InputError(f"expected a JSON object, found {type_of(message)}")
    speaker = next((name for name in ("from", "role") if name in message), names[0])
    words = next((name for name in ("value", "content") if name in message), names[1])
    name = role if role and speaker not in message else text_of(message, speaker)
    called = [key for key in ("tool_calls", "function_call") if message.get(key)]
    if called or name.lower() in TOOLS:
        what = f"the field {called[0]!r}" if called else f"the role {name!r}"
        raise InputError(f"tools: {where} has {what}; dialogues with tools are not read")
    if name.lower() not in SPEAKERS:
        raise InputError(f"unknown role: {where} has {name[:40]!r}; known: {', '.join(SPEAKERS)}")
    role = SPEAKERS[name.lower()]
    turn = RawTurn(role, text_of(message, words), thinking_of(message, role), _is_learnt(message, where, role))
    return turn if turn.thinking or not turn.learn else (role, turn.text)


def history_of(row: dict) -> Turns:
    """Read what was said before, of a row's field "history": pairs [question, answer], or messages.

    Raises InputError.
    """
    history = row.get("history")
    if history in (None, "", "[]"):
        return []
    if not isinstance(history, list):
        raise InputError(f"history: holds {type_of(history)}; expected a list of pairs [question, answer]")
    turns: Turns = []
    for number, item in enumerate(history, start=1):
        if isinstance(item, dict):
            turns.append(read_message(item, f"turn {number} of the history"))
        elif not isinstance(item, list) or len(item) != 2 or not all(isinstance(text, str | None) for text in item):
            raise InputError(f"history: element {number} is no pair [question, answer]; expected two texts")
        else:
            turns += zip(("user", "assistant"), ((text or "").strip() for text in item), strict=True)
    return turns


def system_of(row: Any) -> Turns:
    """Make a system turn of a row's field "system", which may be missing or empty: then there is none."""
    text = text_of(row, "system", required=False)
    return [("system", text)] if text else []


def refuse_tools(row: dict) -> None:
    """Raise InputError for a row that offers tools."""
    if row.get("tools") not in (None, "", "[]", []):
        raise InputError("tools: the row offers some in its field 'tools'; dialogues with tools are not read")


def thinking_of(message: dict, role: str = "assistant") -> str:
    """Read the thinking that stands in a field beside a message's text; "" without any. Raises InputError."""
    thoughts = {text_of(message, field, required=False) for field in THINKING} - {""}
    if len(thoughts) > 1:
        raise InputError(f"thinking twice: of the fields {', '.join(THINKING)} two hold different texts")
    if thoughts and role != "assistant":
        raise InputError(f"thinking of the {role}: expected a field {' or '.join(THINKING)} beside answers alone")
    return "".join(thoughts)


def _is_learnt(message: dict, where: str, role: str) -> bool:
    """Read whether an assistant's turn is marked to be learnt, as it is without a mark. Raises InputError."""
    if holds(message, "train_detail") and message["train_detail"]:
        raise InputError(
            f"train_detail: {where} marks parts of its text; expected one mark for all of it, such as loss"
        )
    marks = {field: message[field] for field in LEARN if message.get(field) is not None}
    for field, value in marks.items():
        if value not in (0, 1):
            raise InputError(f"not a mark: field {field!r} of {where} is {str(value)[:40]}; expected true or "
                             "false, 1 or 0")  # fmt: skip
    if len({bool(value) for value in marks.values()}) > 1:
        raise InputError(f"marks that contradict each other: {' and '.join(marks)} of {where}")
    return role != "assistant" or all(marks.values())
