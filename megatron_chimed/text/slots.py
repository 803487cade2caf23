"""Slots: what a template puts around the texts of a dialogue, as people write it in a YAML and as JSON keeps it.

A list of slots, such as ``[{token: "<|im_start|>"}, "user\\n", content, {token: "<|im_end|>"}, "\\n"]``, holds

- a text; the four words below are no texts: ``{text: bos}`` is the text "bos";
- ``{token: "..."}``, one id of the tokenizer, by its name;
- ``bos`` and ``eos``, the tokenizer's;
- ``content``, the turn's text; ``{content: trim}`` without white space at its ends, ``{content: trim_newlines}``
  without line breaks there, ``{content: trim_first_newlines}`` without those at its start, as some families do;
- ``generation``, in an assistant's alone: what stands in front of it is the prompt, what follows the model writes. It
  is in front of ``content`` where it is not given.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from megatron_chimed.config import Located
from megatron_chimed.errors import InputError

WORDS = ("bos", "eos", "content", "generation")
TRIMS: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "trim": str.strip,
    "trim_newlines": lambda text: text.strip("\n"),
    "trim_first_newlines": lambda text: text.lstrip("\n"),
}
"""What is done to a content, by its name."""


class Slot(NamedTuple):
    """kind: text, token or one of WORDS; value: the text, the token's name, or of a content one of TRIMS."""

    kind: str
    value: str = ""


Slots = tuple[Slot, ...]
BOS, EOS, CONTENT, GENERATION = (Slot(word) for word in WORDS)


def texts(*values: str) -> Slots:
    """Make slots of texts; an empty text makes none."""
    return tuple(Slot("text", value) for value in values if value)


def parse_slots(value: Any, where: str) -> Slots:
    """Parse a list of slots from YAML or JSON. Raises InputError as ``WHERE: reason``."""
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list of slots, found {value!r}")
    return tuple(_parse_slot(one, where) for one in value)


def _parse_slot(value: Any, where: str) -> Slot:
    if isinstance(value, str) and value:
        return Slot(value) if value in WORDS else Slot("text", value)
    if isinstance(value, dict) and len(value) == 1:
        ((kind, given),) = value.items()
        given = given.value if isinstance(given, Located) else given
        if kind == "content" and given in TRIMS and given:
            return Slot(kind, given)
        if kind in ("token", "text") and isinstance(given, str) and given:
            return Slot(kind, given)
        value = {kind: given}
    raise InputError(
        f"{where}: {value!r} is no slot; expected a text, {', '.join(WORDS)}, {{token: NAME}}, {{text: TEXT}} "
        f"or {{content: {', '.join(filter(None, TRIMS))}}}"
    )


def slots_to_row(slots: Slots) -> list[str | dict[str, str]]:
    """Write slots as JSON, so that `parse_slots` gives them back."""
    row: list[str | dict[str, str]] = []
    for kind, value in slots:
        if kind == "text":
            row.append({"text": value} if value in WORDS else value)
        else:
            row.append({kind: value} if value else kind)
    return row


def count(slots: Slots, kind: str) -> int:
    """Count the slots of a kind."""
    return sum(slot.kind == kind for slot in slots)


def split_at(slots: Slots, kind: str) -> tuple[Slots, Slots]:
    """Split slots in front of the first of a kind; (all, ()) where there is none."""
    places = [place for place, slot in enumerate(slots) if slot.kind == kind]
    place = places[0] if places else len(slots)
    return slots[:place], slots[place:]


def as_text(slots: Slots, content: str = "", bos: str = "", eos: str = "") -> str:
    """Spell slots out as one text, the tokens by their names."""
    spelled = {"bos": bos, "eos": eos, "generation": ""}
    return "".join(TRIMS[value](content) if kind == "content" else spelled.get(kind, value) for kind, value in slots)


class Field(NamedTuple):
    """The place of a text within a layout: its number among the texts, and how it is trimmed, one of TRIMS."""

    number: int
    trim: str


Piece = int | str | Field
"""An id, a text to be encoded, or the place of one."""

Segment = int | tuple[str | Field, ...]
"""An id, or what stands between two ids and is encoded as one text."""


def segments(pieces: Sequence[Piece]) -> list[Segment]:
    """Cut pieces at their ids."""
    found: list[Segment] = []
    for piece in pieces:
        if isinstance(piece, int):
            found.append(piece)
        elif found and isinstance(found[-1], tuple):
            found[-1] += (piece,)
        else:
            found.append((piece,))
    return found


def fill(layout: Sequence[Segment], given: Sequence[str]) -> list[int | str]:
    """Put texts into their places, so that ids and texts to be encoded are left."""
    return [
        segment
        if type(segment) is int
        else "".join(
            [
                piece if type(piece) is str else given[piece[0]] if not piece[1] else TRIMS[piece[1]](given[piece[0]])
                for piece in segment
            ]
        )
        for segment in layout
    ]
