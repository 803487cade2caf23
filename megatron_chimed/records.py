"""Frozen records that cross a step as JSON lines. Every reader and writer of a step goes through them."""

from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.errors import InputError

ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Turn:
    """What one speaker says: the patient ("user") or the doctor ("assistant"). The text is never empty."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation that ends with an answer: turns alternate between user and assistant, from a user's turn on.

    id: unique in its file, ``SOURCE:FILE:LINE``; source: the name given to the source, by which metrics are kept apart.

    As a row: ``{"id": "toyhom:a.csv:2", "source": "toyhom", "turns": [{"role": "user", "text": "..."}, ...]}``.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]

    def to_row(self) -> dict[str, Any]:
        """The record as a JSON object."""
        turns = [{"role": turn.role, "text": turn.text} for turn in self.turns]
        return {"id": self.id, "source": self.source, "turns": turns}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Dialogue":
        """The record of a JSON object; further fields are passed over.

        Raises InputError with the reason alone (the caller knows file and line).
        """
        for name in ("id", "source"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise InputError(f"field {name!r} holds {_shown(row.get(name))}; expected a non-empty string")
        turns = row.get("turns")
        if not isinstance(turns, list) or not turns:
            raise InputError(f"field 'turns' holds {_shown(turns)}; expected a list of {{role, text}}")
        parsed = tuple(_turn(number, turn) for number, turn in enumerate(turns))
        for number, turn in enumerate(parsed):
            expected = ROLES[number % 2]
            if turn.role != expected:
                raise InputError(f"turn {number} is the {turn.role}'s; expected the {expected}'s (turns alternate)")
        if len(parsed) % 2:
            raise InputError("the last turn is the user's; expected an answer")
        return cls(row["id"], row["source"], parsed)


def _turn(number: int, turn: Any) -> Turn:
    """A turn of a JSON object. Raises InputError."""
    if not isinstance(turn, dict):
        raise InputError(f"turn {number} is {_shown(turn)}; expected an object with role and text")
    if turn.get("role") not in ROLES:
        raise InputError(f"turn {number} has role {_shown(turn.get('role'))}; expected one of {', '.join(ROLES)}")
    if not isinstance(turn.get("text"), str) or not turn["text"].strip():
        raise InputError(f"turn {number} has text {_shown(turn.get('text'))}; expected a non-empty string")
    return Turn(turn["role"], turn["text"])


def _shown(value: Any) -> str:
    """A value for a message, cut to 60 characters."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
