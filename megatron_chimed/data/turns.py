"""Turns of a source's row: what is read of a turn, its thinking apart from its answer, and turns put into order."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from megatron_chimed.errors import InputError

OPENING, CLOSING = "<think>", "</think>"
CUT = "turns cut from a later system turn on"


class RawTurn(NamedTuple):
    """A turn as a reader gives it; a reader may give (role, text) alone. Texts may be empty.

    role: "user", "assistant" or "system". thinking, learn: an assistant's alone; learn False: context, never a target.
    """

    role: str
    text: str
    thinking: str = ""
    learn: bool = True


Turns = list[RawTurn | tuple[str, str]]


def texts_of(turns: Iterable[RawTurn]) -> Iterator[str]:
    """Yield every text of turns, thinking too, in the order in which a model reads it."""
    return (text for turn in turns for text in (turn.thinking, turn.text) if text)


def spoken(turns: Iterable[RawTurn]) -> list[RawTurn]:
    """Return the turns of user and assistant."""
    return [turn for turn in turns if turn.role != "system"]


def split_thinking(text: str) -> tuple[str | None, str]:
    """Split an answer's text into its thinking, None without a think block, and what is behind it.

    Text in front of ``</think>`` is thinking also where ``<think>`` is missing: it may have stood in the prompt.
    Raises InputError for a block that is never closed, and for think marks anywhere else.

    >>> split_thinking("<think>先问病史</think>多久了？"), split_thinking("多久了？")
    (('先问病史', '多久了？'), (None, '多久了？'))
    """
    head, closing, answer = text.partition(CLOSING)
    opened = head.lstrip().startswith(OPENING)
    if not closing:
        if opened:
            raise InputError(f"unclosed {OPENING}: an answer begins with it and has no {CLOSING}; mend or drop the row")
        return None, text
    thinking = head.lstrip().removeprefix(OPENING)
    if OPENING in thinking or OPENING in answer or CLOSING in answer:
        raise InputError(f"think marks inside an answer: expected one {OPENING}...{CLOSING}, at its beginning")
    return thinking, answer


def preprocess_turns(turns: Turns, preprocess: Callable[[str], str]) -> tuple[list[RawTurn], Counter]:
    """Split thinking off the answers, and preprocess every text; returns the turns and what was changed.

    Raises InputError as `split_thinking`, and for an answer with two different thoughts.
    """
    found, changes = [], Counter()
    for turn in (RawTurn(*turn) for turn in turns):
        if turn.role == "assistant":
            turn = _with_thinking_apart(turn, changes)
        found.append(turn._replace(text=preprocess(turn.text), thinking=preprocess(turn.thinking)))
    return found, changes


def _with_thinking_apart(turn: RawTurn, changes: Counter) -> RawTurn:
    """Split the thinking off an assistant's turn, and count what is odd about it."""
    thinking, answer = split_thinking(turn.text)
    if thinking is None:
        return turn
    if not thinking.strip():
        changes["empty think blocks left out"] += 1
    elif turn.thinking.strip() not in ("", thinking.strip()):
        raise InputError("thinking twice: an answer has a think block, and another thought in a field beside it")
    if not turn.text.lstrip().startswith(OPENING):
        changes[f"think blocks without {OPENING}"] += 1
    return turn._replace(text=answer, thinking=thinking if thinking.strip() else turn.thinking)


def merge_turns(turns: list[RawTurn]) -> tuple[list[RawTurn], Counter]:
    """Merge turns so that one system turn at most comes first and the others alternate; count what was changed for it.

    Empty turns are left out, consecutive turns of one speaker are joined by a line break, their thinking too; an answer
    is learnt only where all that was joined is. System turns before the first answer are joined to one in front. From a
    later one on all is cut: what obeys it would else be learnt without it.
    """
    changes: Counter = Counter()
    system: list[str] = []
    merged: list[RawTurn] = []
    answered = False
    for place, turn in enumerate(turns):
        if not turn.text:
            changes["turns of thinking alone left out" if turn.thinking else "empty turns left out"] += 1
        elif turn.role == "system":
            if turn.text in system:
                changes["repeated system turns left out"] += 1
            elif answered:
                changes[CUT] = len(turns) - place
                break
            else:
                changes["system turns moved to the front"] += bool(merged)
                system.append(turn.text)
        elif merged and merged[-1].role == turn.role:
            merged[-1] = _join(merged[-1], turn, changes)
        else:
            answered |= bool(merged) and turn.role == "assistant"
            merged.append(turn)
    if system:
        changes["system turns merged"] = len(system) - 1
        merged.insert(0, RawTurn("system", "\n".join(system)))
    return merged, +changes


def _join(one: RawTurn, other: RawTurn, changes: Counter) -> RawTurn:
    """Join two turns of one speaker."""
    changes["turns merged"] += 1
    changes["answers merged with one not to be learnt"] += one.learn != other.learn
    thinking = "\n".join(filter(None, (one.thinking, other.thinking)))
    return RawTurn(one.role, f"{one.text}\n{other.text}", thinking, one.learn and other.learn)
