"""Answers that were chosen and rejected, each a text or messages, and the prompt that stands in both of them."""

import re
from collections.abc import Iterable
from typing import Any

from megatron_chimed.data.fields import holds, text_of, type_of
from megatron_chimed.data.messages import LISTS, SPEAKERS, read_message, read_messages
from megatron_chimed.data.turns import CLOSING, OPENING, RawTurn, Turns
from megatron_chimed.errors import InputError

HUMAN = re.compile(r"\s*Human:")
SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def human_turns(text: str, where: str) -> Turns:
    r"""Read the turns of a text of HH-RLHF; an answer that is left open at the end is none. Raises InputError.

    >>> human_turns("\n\nHuman: 头痛\n\nAssistant: 多久了？\n\nHuman: 两天\n\nAssistant:", "prompt")
    [('user', '头痛'), ('assistant', '多久了？'), ('user', '两天')]
    """
    before, *parts = SPEAKER.split(f"\n\n{text.strip()}")
    if before.strip() or not parts:
        raise InputError(f"unknown role: {where} begins with {text.strip()[:20]!r}; expected 'Human:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [(roles[name], words.strip()) for name, words in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1] if turns[-1] == ("assistant", "") else turns


def is_whole(row: Any, field: str, prompts: Iterable[str]) -> bool:
    """Whether an answer's field holds its prompt too: messages from a user's or a system's on, or a text of HH-RLHF
    where none of the fields `prompts` holds something."""
    if not holds(row, field):
        return False
    value = dict.get(row, field)
    if isinstance(value, str):
        return HUMAN.match(value) is not None and not any(holds(row, name) for name in prompts)
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], dict):
        return False
    speaker = next((value[0][name] for name in ("from", "role") if holds(value[0], name)), None)
    return isinstance(speaker, str) and SPEAKERS.get(speaker.strip().lower()) in ("user", "system")


def shared_prompt(row: dict) -> tuple[Turns, str, str]:
    """Read the turns that chosen and rejected have in common, and the answer behind them of each.

    A prompt in a field beside them is read if it is one of those turns. Raises InputError.
    """
    chosen, rejected = (_whole_turns(row, field) for field in ("chosen", "rejected"))
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise InputError(f"not an answer: field {field!r} does not end with one behind a prompt")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    place = next((number for number, (one, other) in pairs if one[:2] != other[:2]), None)
    if place is None:
        place = min(len(chosen), len(rejected)) - 1  # equal answers, or one dialogue inside the other
    if not len(chosen) == len(rejected) == place + 1:
        raise InputError(f"no common prompt: chosen and rejected differ from turn {place + 1} on; expected the same "
                         "turns but for the last answer")  # fmt: skip
    if holds(row, "prompt") and (dict.get(row, "prompt"), "user") in [(turn.text, turn.role) for turn in chosen[:-1]]:
        text_of(row, "prompt")
    return chosen[:-1], think_block(chosen[-1]), think_block(rejected[-1])


def _whole_turns(row: dict, field: str) -> list[RawTurn]:
    """Read the turns of an answer with its prompt."""
    value = row[field]
    turns = human_turns(value, f"field {field!r}") if isinstance(value, str) else read_messages(value)
    return [RawTurn(*turn) for turn in turns]


def answer_of(row: Any, field: str) -> str:
    """Read the text of an answer: a string, a message of an assistant, or a list of one of them; "" for null.

    Thinking that stands in a field beside it is a think block in front of it. Raises InputError.
    """
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type_of(row)}")
    value = row.get(field)
    if isinstance(value, list):
        if len(value) != 1:
            raise InputError(f"not one answer: field {field!r} is a list of {len(value)}")
        value = value[0]
    if isinstance(value, dict):
        turn = RawTurn(*read_message(value, f"field {field!r}", LISTS["messages"], role="assistant"))
        if turn.role != "assistant":
            raise InputError(f"not an answer: field {field!r} is of the {turn.role}; expected an assistant's")
        return think_block(turn)
    return text_of({field: value} if field in row else row, field)


def think_block(turn: RawTurn) -> str:
    """Write an answer with its thinking in front."""
    return f"{OPENING}{turn.thinking}{CLOSING}{turn.text}" if turn.thinking else turn.text
