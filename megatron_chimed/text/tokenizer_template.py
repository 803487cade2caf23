"""The chat template of a tokenizer's folder, a Jinja program, as a template of slots, proven on probe dialogues.

Dialogues of marked texts are rendered by transformers; what stands around the marks are the slots. A shipped template
that gives the same ids is taken as it is. Either is believed only when its prompts and answers have the ids that
`apply_chat_template` gives on dialogues with and without a system turn, of several turns, and of texts with spaces and
line breaks; and when texts that spell the markers give the ids of their characters between the same markers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.text.jinja import INNER, first_difference, probes_of, recorded
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.slots import BOS, CONTENT, EOS, GENERATION, Slot, Slots
from megatron_chimed.text.template import Template, load_template, shipped_names
from megatron_chimed.text.tokenizer import Tokenizer, load_tokenizer
from megatron_chimed.text.tokenizer_folder import load_by_transformers

NAME = "tokenizer"
"""What --template calls it."""

MARKERS = 40
"""Of a tokenizer's tokens so many are tried as markers in a question."""

SYSTEM, QUESTION, ANSWER, FOLLOWING = "⟦系统⟧", "⟦问一⟧", "⟦答一⟧", "⟦问二⟧"
"""Texts by which what is rendered is told from what stands around it."""


class _Odd(Exception):
    """A chat template whose output is not made of slots; the message says where."""


def tokenizer_template(folder: str | Path) -> Template:
    """The template of a tokenizer's own chat template.

    Raises InputError where the folder has none, and with the first probe dialogue that gives other ids where it cannot
    be told in slots.
    """
    folder = Path(folder)
    theirs = load_by_transformers(folder)
    own = theirs.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if not isinstance(own, str):
        raise InputError(f"{folder}: the tokenizer has no chat template; give --template a name or a YAML")
    known, own = recorded(own)
    if known is not None:  # an export of ours
        return known
    tokenizer = load_tokenizer(folder)
    for template in _known():
        if _fault(template, tokenizer, theirs, own) is None:
            return template
    try:
        template = _Reading(theirs, own).template(folder.name)
        reason = _fault(template, tokenizer, theirs, own)
    except (_Odd, InputError) as error:
        reason = str(error)
    if reason is None:
        return template
    raise InputError(
        f"{folder}: its chat template cannot be told in slots, as {reason}; give --template a name or a YAML"
    )


def open_template(given: str | None, tokenizer: str | Path | None) -> Template:
    """The template of --template: ``tokenizer``, that of the tokenizer's folder, or as `load_template`.

    tokenizer: a folder, or the SentencePiece model in one. Raises InputError as these.
    """
    if given != NAME:
        return load_template(given)
    if tokenizer is None or not Path(tokenizer).exists():
        raise InputError(f"--template {NAME}: {tokenizer or 'no tokenizer'}: no such folder; give the tokenizer's")
    return tokenizer_template(Path(tokenizer).parent if Path(tokenizer).is_file() else tokenizer)


def _known() -> Iterator[Template]:
    """The shipped templates, those with thinking in both ways and first: without it they could pass for others."""
    found = sorted(map(load_template, shipped_names()), key=lambda template: not template.empty_thinking)
    for template in found:
        yield template
        if template.empty_thinking:
            yield replace(template, think=not template.think)


def _fault(template: Template, tokenizer: Tokenizer, theirs: Any, own: str) -> str | None:
    """The first difference between a template and a chat template; None where they give the same."""
    try:
        renderer = Renderer(template, tokenizer)
        return (
            first_difference(list(probes_of(renderer)), theirs, own)
            or _first_answer_fault(renderer, theirs, own)
            or _first_marker_fault(renderer, theirs, own)
            or _thinking_fault(template, theirs, own)
        )
    except (_Odd, InputError) as error:
        return str(error)


def _render(theirs: Any, own: str, turns: Sequence[Turn], *, prompt: bool) -> str:
    """Render by transformers. Raises _Odd with the template's own complaint."""
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        return theirs.apply_chat_template(messages, chat_template=own, add_generation_prompt=prompt, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise _Odd(f"it raises {' '.join(str(error).split())[:100]!r}") from None


def _first_answer_fault(renderer: Renderer, theirs: Any, own: str) -> str | None:
    """Compare a dialogue that ends with an answer: both end with the id that ends answers, and what follows it."""
    turns = tuple(Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(INNER[:4]))
    ours = renderer.render(Dialogue("probe", "probe", turns)).tokens.tolist()
    found = theirs(_render(theirs, own, turns, prompt=False), add_special_tokens=False)["input_ids"]
    if found not in (ours, [*ours, *renderer.after_answer().tolist()]):
        return f"a dialogue that ends with the answer {INNER[3]!r} has {len(found)} ids, in slots {len(ours)}"
    return None


def _first_marker_fault(renderer: Renderer, theirs: Any, own: str) -> str | None:
    """Compare questions that spell a marker with what the rendering of a marked text has around it."""
    reading = _Reading(theirs, own)
    around = reading.pieces([Turn("user", QUESTION)])
    plain = renderer.tokenizer.between(reading.names)
    for marker in (*sorted(reading.names)[:MARKERS], "[INST]", "[human]:"):
        text = f"我写 {marker} 好吗"
        wanted: list[int] = []
        for piece in around:
            wanted += [piece] if isinstance(piece, int) else plain.encode(piece.replace(QUESTION, text))
        if not renderer.template.apart and renderer.render_prompt([Turn("user", text)]).tolist() != wanted:
            return f"the question {text!r} has other ids in slots"
    return None


def _thinking_fault(template: Template, theirs: Any, own: str) -> str | None:
    """Whether the chat template knows thinking that the slots have no place for."""
    messages = [{"role": "user", "content": QUESTION}]
    found = {
        theirs.apply_chat_template(
            messages, chat_template=own, add_generation_prompt=True, tokenize=False, enable_thinking=think
        )
        for think in (False, True)
    }
    return "it knows enable_thinking" if len(found) > 1 and not template.empty_thinking else None


@dataclass
class _Reading:
    """What a chat template makes of marked texts."""

    theirs: Any
    own: str

    def __post_init__(self):
        added = self.theirs.get_added_vocab()
        self.names: dict[str, int] = dict(added) | dict(
            zip(self.theirs.all_special_tokens, self.theirs.all_special_ids, strict=True)
        )
        longest = sorted(self.names, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if longest else re.compile("(?!)()")

    def pieces(self, turns: Sequence[Turn]) -> list[int | str]:
        """Ids of tokens, and the texts between them, of a prompt."""
        parts = self.pattern.split(_render(self.theirs, self.own, turns, prompt=True))
        return [self.names[part] if number % 2 else part for number, part in enumerate(parts) if part]

    def around(self, turns: Sequence[Turn], *, prompt: bool = True) -> list[list[Slot]]:
        """The slots in front of, between and behind the marks of a dialogue, characters one by one. Raises _Odd."""
        found, rest = [], _render(self.theirs, self.own, turns, prompt=prompt)
        for turn in turns:
            if rest.count(turn.text) != 1:
                raise _Odd(f"the {turn.role}'s text stands there {rest.count(turn.text)} times")
            before, rest = rest.split(turn.text)
            found.append(self._slots(before))
        return [*found, self._slots(rest)]

    def _slots(self, text: str) -> list[Slot]:
        """Tokens, and the characters between them, one by one."""
        special = {self.theirs.bos_token: BOS, self.theirs.eos_token: EOS}
        found: list[Slot] = []
        for number, part in enumerate(self.pattern.split(text)):
            found += [special.get(part) or Slot("token", part)] if number % 2 else [Slot("text", one) for one in part]
        return found

    def template(self, name: str) -> Template:
        """Tell the template in slots. Raises _Odd, and InputError for slots that make none."""
        user, answer, following = Turn("user", QUESTION), Turn("assistant", ANSWER), Turn("user", FOLLOWING)
        before, between, behind, prompt = self.around([user, answer, following])
        ends = [place for place, slot in enumerate(behind) if slot.kind != "text"]
        if not ends:
            raise _Odd("no token ends an answer")
        ending, behind = behind[: ends[0] + 1], behind[ends[0] + 1 :]
        last = self.around([user, answer], prompt=False)[-1]  # it may end with what stands between answer and question
        after = last[len(ending) :] if last == [*ending, *behind[: len(last) - len(ending)]] else []
        each = _common_end(before, behind[len(after) :])
        start, after = before[: len(before) - len(each)], behind[: len(behind) - len(each)]
        if between[: len(prompt)] != prompt:
            raise _Odd("the prompt of an answer is not what stands in front of it in a dialogue")
        generation = [GENERATION, *between[len(prompt) :]] if len(prompt) < len(between) else []
        system, place, start, default = self._system(user, answer, following, start, each)
        question, said = (self._content(role) for role in ("user", "assistant"))
        assistant = [*prompt, *generation, said, *ending]
        return Template(
            name=name, start=_joined(start), system=_joined(system), system_in=place, default_system=default,
            user=_joined([*each, question]), assistant=_joined(assistant), after_answer=_joined(after),
            apart=False,
        )  # fmt: skip

    def _system(
        self, user: Turn, answer: Turn, following: Turn, start: list[Slot], each: list[Slot]
    ) -> tuple[list[Slot], str, list[Slot], str | None]:
        """(slots of a system turn, where it stands, the start without a default one, that one's text). Raises _Odd."""
        system = Turn("system", SYSTEM)
        content = Slot("content", "trim") if self._is_trimmed("system") else CONTENT
        try:
            text = _render(self.theirs, self.own, [system, user, answer, following], prompt=True)
        except _Odd:
            return [], "turn", start, None
        if text.count(SYSTEM) != 1:
            return [], "turn", start, None
        if text.index(SYSTEM) > text.index(ANSWER):
            parts = re.split(f"{SYSTEM}|{FOLLOWING}", text)
            behind = self._slots(parts[1])
            return [content, *behind], "last_question", start, None
        before, behind, *_ = self.around([system, user, answer, following])
        if before[: len(start) + len(each)] == [*start, *each]:
            return [*before[len(start) + len(each) :], content, *behind], "first_question", start, None
        if behind[len(behind) - len(each) :] != each:
            raise _Odd("what stands behind a system turn is not what stands in front of a question")
        own_end = behind[: len(behind) - len(each)]
        if before[: len(start)] == start:
            return [*before[len(start) :], content, *own_end], "turn", start, None
        first = [BOS] if before[:1] == [BOS] else []
        own_start = before[len(first) :]
        told = start[len(first) + len(own_start) : len(start) - len(own_end)]
        if start != [*first, *own_start, *told, *own_end] or any(slot.kind != "text" for slot in told):
            raise _Odd("a dialogue without a system turn starts otherwise than one with it")
        return [*own_start, content, *own_end], "turn", first, "".join(slot.value for slot in told)

    def _is_trimmed(self, role: str) -> bool:
        """Whether the white space around a turn's text goes."""
        spaced = {"system": SYSTEM, "user": QUESTION, "assistant": ANSWER}
        spaced[role] = f" \n{spaced[role]}\n "
        turns = [Turn("user", spaced["user"]), Turn("assistant", spaced["assistant"]), Turn("user", FOLLOWING)]
        turns = [Turn("system", spaced["system"]), *turns] if role == "system" else turns
        try:
            return spaced[role] not in _render(self.theirs, self.own, turns, prompt=True)
        except _Odd:
            return False

    def _content(self, role: str) -> Slot:
        """The slot of a turn's text."""
        return Slot("content", "trim") if self._is_trimmed(role) else CONTENT


def _common_end(one: list[Slot], other: list[Slot]) -> list[Slot]:
    """The slots that both end with."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _joined(some: Sequence[Slot]) -> Slots:
    """Slots whose characters are texts again."""
    found: list[Slot] = []
    for slot in some:
        if slot.kind == "text" and found and found[-1].kind == "text":
            found[-1] = Slot("text", found[-1].value + slot.value)
        else:
            found.append(slot)
    return tuple(found)
