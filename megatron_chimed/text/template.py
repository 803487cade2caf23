"""Template: what stands around the turns of a dialogue, as lists of slots (text/slots.py) for each role.

A dialogue is a chain of exchanges, each a user's turn and its answer. With the default template, ``chimed``, the form
of the released model, an exchange is

    BOS [human]:QUESTION\\n[bot]: ANSWER EOS        (BOS and EOS are ids; the rest is text)

and a dialogue of several turns repeats it; a system turn is a line in front of the first question. Others are shipped
by name, YAML files of templates/, or come from a YAML. text/renderer.py makes ids of them.

Source of chimed: arXiv 2311.06025, section on supervised fine-tuning ("boundaries of different pairs are marked by
special tokens"); the prompt format of the released model. The others are those of the families' own chat templates.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_chimed.config import Located, parse_dataclass, read_mapping
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import sha256_json
from megatron_chimed.records import Turn, split_system
from megatron_chimed.text import slots
from megatron_chimed.text.slots import BOS, CONTENT, EOS, Slot, Slots, texts

SHIPPED = Path(__file__).parent / "templates"
DEFAULT = "chimed"
PREFIX, SUFFIX = "[human]:", "\n[bot]:"
SYSTEM_PLACES = ("turn", "first_question", "last_question")


@dataclass(frozen=True)
class PlainTexts:
    """A template of plain texts alone, in the older form of a YAML; what it leaves out is chimed's."""

    name: str = DEFAULT
    user_prefix: str = PREFIX
    user_suffix: str = SUFFIX
    bos: bool = True

    def template(self) -> "Template":
        """Make the template. Raises InputError where both texts are blank."""
        if not (self.user_prefix + self.user_suffix).strip():
            raise InputError(f"template {self.name!r}: user_prefix and user_suffix are blank; give at least one text")
        user = (*((BOS,) if self.bos else ()), *texts(self.user_prefix), CONTENT)
        return Template(self.name, user=user, assistant=(*texts(self.user_suffix), CONTENT, EOS))


@dataclass(frozen=True)
class Template:
    """What stands around the turns; without arguments it is chimed."""

    name: str = DEFAULT
    """For people; part of the hash all the same."""

    start: Slots = ()
    """Once, in front of a dialogue."""

    system: Slots = (CONTENT, *texts("\n"))
    """Around a system turn; () where the family's template has no place for one, and such a turn is refused."""

    system_in: str = "first_question"
    """Where `system` stands: a turn of its own, or in front of the content of the first or the last question."""

    default_system: str | None = None
    """The system turn of a dialogue that has none; None for none."""

    user: Slots = (BOS, *texts(PREFIX), CONTENT)
    """Around a question."""

    assistant: Slots = (*texts(SUFFIX), CONTENT, EOS)
    """Around an answer. It ends with the id that ends an answer; what precedes `generation` is the prompt."""

    after_answer: Slots = ()
    """Between an answer and the next question; never trained."""

    thinking: Slots = ()
    """Around what the assistant thought, where the answer is generated and in front of its text; () for no place."""

    empty_thinking: bool = False
    """Whether an answer without thinking has an empty block of `thinking`, which is part of its prompt."""

    think: bool = False
    """Whether a prompt leaves the thinking to the model where nobody says so; else it has the empty block."""

    history: Slots = ()
    """Around an answer that stands in front of a later question, without its thinking; () for `assistant`."""

    apart: bool = True
    """Encode each answer, and each prompt of an exchange, as a text of its own, as in the released model; False encodes
    as transformers does, a text between two ids as one, whichever turns it is made of."""

    def __post_init__(self):
        """Raises InputError."""
        counts = [("user", self.user, 1), ("assistant", self.assistant, 1), ("start", self.start, 0)]
        counts += [("after_answer", self.after_answer, 0), ("system", self.system, 1)]
        counts += [("thinking", self.thinking, 1), ("history", self.history, 1)]
        for key, value, expected in counts:
            if slots.count(value, "content") != expected and (value or key in ("user", "assistant")):
                raise InputError(f"template {self.name!r}: {key} has not {expected or 'no'} content")
            if slots.count(value, "generation") > (key == "assistant"):
                raise InputError(f"template {self.name!r}: generation stands in {key}; it is once in assistant, or not")
        for key, value in (("assistant", self.assistant), ("history", self.history)):
            if value and value[-1] != self.assistant[-1] or self.assistant[-1].kind not in ("eos", "token"):
                raise InputError(f"template {self.name!r}: {key} must end with what ends an answer, eos or a token")
        if not any(slot.kind == "content" for slot in self._split_assistant()[1]):
            raise InputError(f"template {self.name!r}: generation stands behind content; put it in front")
        if not slots.as_text((*self.user, *self.assistant[:-1]), bos="x").strip():
            raise InputError(f"template {self.name!r}: nothing stands around a question; give it a text or a token")
        if self.system_in not in SYSTEM_PLACES:
            raise InputError(
                f"template {self.name!r}: system_in is {self.system_in!r}; expected one of {', '.join(SYSTEM_PLACES)}"
            )
        if self.default_system is not None and not self.system:
            raise InputError(f"template {self.name!r}: default_system needs system, the slots around it")

    def _split_assistant(self) -> tuple[Slots, Slots]:
        """Split the slots of an answer into those of its prompt and those that are generated."""
        kind = "generation" if slots.count(self.assistant, "generation") else "content"
        return slots.split_at(self.assistant, kind)

    @property
    def lead(self) -> Slots:
        """The slots of an answer that belong to its prompt."""
        return self._split_assistant()[0]

    @property
    def answer(self) -> Slots:
        """The slots of an answer that are generated."""
        return self._split_assistant()[1]

    @property
    def bos(self) -> bool:
        """Whether a dialogue starts with BOS."""
        return (*self.start, *self.user)[0] == BOS

    @property
    def all_slots(self) -> Slots:
        """Every slot of the template."""
        return tuple(slot for f in fields(self) if isinstance(value := getattr(self, f.name), tuple) for slot in value)

    @staticmethod
    def load(given: str | Path | None = None) -> "Template":
        """The template of a name or a YAML file, or chimed without one; see `load_template`.

        >>> import megatron_chimed as mc
        >>> mc.Template.load("chatml").name
        'chatml'
        """
        return load_template(given)

    def plain(self, given: Sequence[str]) -> str:
        """A dialogue that ends with a question as plain text, a line for each turn, for models without a chat template.

        >>> Template().plain(["头痛怎么办？"])
        '[human]:头痛怎么办？\\n[bot]:'
        """
        mark = slots.as_text(self.lead).strip()
        turns = (
            f"{mark} {text}" if number % 2 else slots.as_text(self.user, text) for number, text in enumerate(given)
        )
        return "\n".join([*turns, mark])

    def shown(self, turns: Sequence[Turn]) -> str:
        """Turns as text for people: tokens by their names, BOS and EOS left out."""
        system, turns = split_system(turns)
        text = slots.as_text(self.system, system.text) if system else ""
        for turn in turns:
            if turn.role == "user":
                text += slots.as_text(self.user, turn.text) + slots.as_text(self.lead)
            else:
                text += f" {turn.text}\n"
        return text

    def to_row(self) -> dict[str, Any]:
        """Write the template as JSON; one that the older form can tell is written so, as its hash is in manifests."""
        if plain := as_plain(self):
            return asdict(plain)
        return {
            f.name: slots.slots_to_row(value) if isinstance(value := getattr(self, f.name), tuple) else value
            for f in fields(self)
        }

    @classmethod
    def from_row(cls, row: Any, where: str = "a template") -> "Template":
        """Read what `to_row` wrote. Raises InputError as ``WHERE: reason``."""
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a JSON object with a template")
        return _parse({str(key): Located(value, where) for key, value in row.items()}, where)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over all that decides the ids."""
        return sha256_json(self.to_row())


def as_plain(template: Template) -> PlainTexts | None:
    """Tell a template in the older form, plain texts; None where it cannot tell it."""
    prefix, suffix = (
        "".join(slot.value for slot in some if slot.kind == "text") for some in (template.user, template.assistant)
    )
    if not (prefix + suffix).strip():
        return None
    plain = PlainTexts(template.name, prefix, suffix, BOS in template.user)
    return plain if plain.template() == template else None


def load_template(given: str | Path | None = None) -> Template:
    """Load a template: one of `shipped_names`, or that of a YAML file; chimed for None.

    Raises InputError with file and line: an unknown name or key, a key given twice, a wrong type, slots that make no
    template.
    """
    if given is None or str(given) == DEFAULT:
        return Template()
    path = SHIPPED / f"{given}.yaml" if str(given) in shipped_names() else Path(given)
    if not path.suffix and not path.exists():
        raise InputError(f"template {given}: no such name or file; shipped are {', '.join(shipped_names())}")
    settings = {str(key): value for key, value in read_mapping(path).items()}
    return _parse(settings, str(path))


@functools.cache
def shipped_names() -> tuple[str, ...]:
    """List the names of the shipped templates, the default first."""
    return (DEFAULT, *sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def _parse(settings: dict[str, Located], path: str) -> Template:
    """Parse a template of {key: Located}. Raises InputError."""
    kinds = {f.name: f.type for f in fields(Template)}
    older = {f.name for f in fields(PlainTexts)}
    for key, setting in settings.items():
        if key not in kinds and key not in older:
            raise InputError(
                f"{setting.where}: unknown key {key!r} in a template; known here: {', '.join(sorted(older))}, "
                f"or in place of these name, {', '.join(sorted(kinds.keys() - older))}"
            )
    try:
        if not settings.keys() - older:
            found = parse_dataclass(settings, PlainTexts, block=" in a template")[0].template()
            if settings.keys() - {"name"} and path.endswith((".yaml", ".yml")):
                _say_new_form(path)
            return found
        if mixed := settings.keys() & (older - {"name"}):
            key = min(mixed)
            raise InputError(f"{settings[key].where}: {key} is of the older form, beside slots; write it as slots")
        missing = [key for key in ("user", "assistant") if key not in settings]
        if missing:
            raise InputError(f"no {' and '.join(missing)} is given; expected the slots of a question and of an answer")
        neutral = {"name": Path(path).stem, "system": (), "system_in": "turn", "apart": False}
        return Template(**neutral | {key: _value(key, setting) for key, setting in settings.items()})
    except InputError as error:
        raise InputError(str(error) if path in str(error) else f"{path}: {error}") from None


def _value(key: str, setting: Located) -> Any:
    """Read one field of a template. Raises InputError."""
    expected, value = {f.name: f.type for f in fields(Template)}[key], setting.value
    if expected is Slots:
        return slots.parse_slots(value, f"{setting.where}: {key}")
    if expected is bool and type(value) is not bool:
        raise InputError(f"{setting.where}: {key}: expected true or false, found {value!r}")
    if expected is not bool and not isinstance(value, str) and not (value is None and key == "default_system"):
        raise InputError(f"{setting.where}: {key}: expected a text, found {value!r}")
    return value


@functools.cache
def _say_new_form(path: str) -> None:
    """Tell once how the older form is written now; it goes on working."""
    print(
        f"megatron_chimed: {path}: user_prefix, user_suffix and bos are the older form of a template, which works; "
        'the newer one is user: [bos, "[human]:", content] and assistant: ["\\n[bot]:", content, eos]',
        file=sys.stderr,
        flush=True,
    )


__all__ = ["PlainTexts", "Slot", "Template", "load_template", "shipped_names"]
