"""What a model thought, apart from what it answered: sampled tokens or a server's text, split by the template."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from megatron_chimed.errors import InputError
from megatron_chimed.text import slots
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import Template


class Marks(NamedTuple):
    """What stands in front of thinking and behind it, as text."""

    opening: str
    closing: str


class Answer(NamedTuple):
    """thinking: "" for none; text: "" where the thinking never ended."""

    thinking: str
    text: str


def marks_of(template: Template) -> Marks | None:
    """The marks of a template, tokens by their names; None where it has no place for thinking.

    >>> marks_of(Template.load("qwen3"))
    Marks(opening='<think>', closing='</think>')
    """
    before, behind = slots.split_at(template.thinking, "content")
    marks = Marks(slots.as_text(before).strip(), slots.as_text(behind).strip())
    return marks if all(marks) else None


def with_think(template: Template, think: bool | None, where: str) -> Template:
    """The template whose prompts leave thinking to the model, or do not; None leaves it as it is.

    Raises InputError for a template without a place for it; where: what asks for it, for the message.
    """
    if think is None:
        return template
    if not template.thinking:
        raise InputError(f"{where}: the template {template.name!r} has no place for thinking; leave it out")
    return replace(template, think=think)


def split_thinking(text: str, marks: Marks | None) -> Answer:
    """Split the text of an answer.

    Text in front of the closing mark is thinking also where the opening one is missing, as some templates have that in
    their prompts. What was never closed is thinking to its end.

    >>> split_thinking("<think>\\n先问病史\\n</think>\\n\\n多久了？", Marks("<think>", "</think>"))
    Answer(thinking='先问病史', text='多久了？')
    """
    if marks is None:
        return Answer("", text)
    head, closing, answer = text.partition(marks.closing)
    if not closing and not text.lstrip().startswith(marks.opening):
        return Answer("", text)
    return Answer(head.lstrip().removeprefix(marks.opening).strip(), answer.lstrip("\n"))


def mark_names(renderer: Renderer) -> dict[int, str]:
    """The tokens around a template's thinking by their ids; decoding may leave no trace of them."""
    names = [slot.value for slot in renderer.template.thinking if slot.kind == "token"]
    return {renderer.tokenizer.token_to_id(name): name for name in names}


def spell(tokens: Iterable[int], renderer: Renderer) -> str:
    """The text of sampled tokens, without the one that ended them; tokens around thinking by their names."""
    names = mark_names(renderer)
    kept = [int(token) for token in tokens if token not in renderer.stop_ids]
    parts = ((mark, list(run)) for mark, run in groupby(kept, lambda token: token in names))
    return "".join(
        "".join(names[token] for token in run) if mark else renderer.tokenizer.decode(run) for mark, run in parts
    )


def read_answer(tokens: Iterable[int], renderer: Renderer) -> Answer:
    """Split the sampled tokens of an answer."""
    return split_thinking(spell(tokens, renderer), marks_of(renderer.template))
