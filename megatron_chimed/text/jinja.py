"""A template as a chat template of transformers, a Jinja text, for servers that render prompts themselves.

`chat_template` proves on probe dialogues that a folder's tokenizer so gives the prompts of the training. What no such
text can give: a server parses special tokens in it, so that a user's "</s>" or "<|im_end|>" becomes the id; and where
SentencePiece has no dummy prefix, an answer in the history could share a piece with the text in front of it.
"""

import json
import string
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.records import Turn
from megatron_chimed.text import slots
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.slots import Slots
from megatron_chimed.text.template import PlainTexts, Template, as_plain
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_folder import load_by_transformers

TRIMS = {"": "", "trim": ".strip()", "trim_newlines": ".strip('\\n')", "trim_first_newlines": ".lstrip('\\n')"}
"""What Jinja does to a content, by the names of `slots.TRIMS`."""

CHAT_TEMPLATE = "chat_template.jinja"
"""The file of a tokenizer's folder."""

RECORD, RECORD_END = "{# megatron_chimed template: ", " #}"
"""Around the template as JSON in a comment in front of its Jinja text, by which it is known again."""

SYSTEM = Turn("system", "你是医生。\n\n只说 中文")
INNER = ("头痛三天，怎么办？\nBP 140/90", "建议检查血压。 OK", "谢谢，Dr. li", "不客气", "再见")
OUTER = (" 头痛三天，\n\n怎么办？ \n", "\n\n建议  检查血压。OK\n", "  \n谢谢，\tdr. Li ", " 不客气\n\n", "\n再见")
"""Turns of probe dialogues: with spaces and line breaks inside, and at their ends too."""

FORM = string.Template("""\
{%- set has_system = messages[0]['role'] == 'system' -%}
{%- set turns = messages[1:] if has_system else messages -%}
{%- set system = messages[0]['content'] if has_system else $default_system -%}
{%- if has_system and not $takes_system -%}
  {{- raise_exception('there is no place for a system message') -}}
{%- endif -%}
{%- set told = $system if system or $always_told else '' -%}
{{- $start + $told_at_start -}}
{%- for turn in turns -%}
  {%- if turn['role'] != ['user', 'assistant'][loop.index0 % 2] -%}
    {{- raise_exception('messages of user and assistant must take turns') -}}
  {%- endif -%}
  {%- set text = $text -%}
  {%- if turn['role'] == 'user' -%}
    {{- ('' if loop.first else $after_answer) + $before + (told if $told_in_question else '') + $behind -}}
  {%- elif loop.last -%}
    {{- $lead + ($thinking if turn['reasoning_content'] else $empty) + $answer -}}
  {%- else -%}
    {{- $history -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- $lead + ('' if (enable_thinking if enable_thinking is defined else $think) else $empty) -}}
{%- endif -%}""")


def to_jinja(template: Template, user_space: str = "", answer_space: str = "") -> str:
    """Write a template as Jinja.

    The spaces stand for the dummy prefix of SentencePiece, which some tokenizers put only in front of a whole text.
    ``enable_thinking`` is as in Qwen3's own; thinking is left out but for the last answer's ``reasoning_content``. A
    message out of turn raises there, and so does a system message for which there is no place.
    """
    if plain := as_plain(template):
        return _plain(plain, user_space, answer_space)
    before, behind = slots.split_at(template.user, "content")
    at = template.system_in
    return FORM.substitute(
        default_system=_quoted(template.default_system or ""),
        takes_system=_bool(template.system),
        always_told=_bool(template.default_system is not None),
        system=_sum(template.system, "system"),
        start=_sum(template.start),
        told_at_start="told" if at == "turn" else "''",
        text=_without_thinking(template),
        after_answer=_sum(template.after_answer),
        before=_sum(before, space=user_space),
        told_in_question={"turn": "false", "first_question": "loop.first", "last_question": "loop.revindex0 < 2"}[at],
        behind=_sum(behind, "text", space="" if slots.count(before, "text") else user_space),
        lead=_sum(template.lead),
        thinking=_sum(template.thinking, "turn['reasoning_content']"),
        empty=_sum(template.thinking, "''") if template.empty_thinking else "''",
        answer=_sum(template.answer, "text", space=answer_space),
        history=_sum(template.history or template.assistant, "text", space=answer_space),
        think=_bool(template.think),
    )


def _plain(plain: PlainTexts, user_space: str, answer_space: str) -> str:
    """Write a template of plain texts. A system message is a line in front of the next question."""
    prefix, suffix = _quoted(plain.user_prefix), _quoted(plain.user_suffix)
    bos = "bos_token + " if plain.bos else ""
    return (
        "{%- set seen = namespace(system='') -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}{%- set seen.system = message['content'] + '\\n' -%}"
        "{%- elif message['role'] == 'user' -%}"
        f"{{{{- {bos}'{user_space}' + {prefix} + seen.system + message['content'] + {suffix} -}}}}"
        "{%- set seen.system = '' -%}"
        f"{{%- else -%}}{{{{- '{answer_space}' + message['content'] + eos_token -}}}}"
        "{%- endif -%}{%- endfor -%}"
    )


def _sum(some: Slots, content: str = "", space: str = "") -> str:
    """Write slots as a sum in Jinja; content: the expression in its place; space: in front of the first text."""
    parts: list[str] = []
    for kind, value in some:
        if kind == "content":
            parts += [_quoted(space)] * bool(space) + [content + TRIMS[value]]
        elif kind != "generation":
            parts.append(
                {"bos": "bos_token", "eos": "eos_token"}.get(kind) or _quoted(space * (kind == "text") + value)
            )
        space = "" if kind in ("content", "text") else space
    return f"({' + '.join(parts)})" if parts else "''"


def _without_thinking(template: Template) -> str:
    """Write a turn's content, for an answer without the thinking that clients may send back in it."""
    close = slots.as_text(slots.split_at(template.thinking, "content")[1][1:]).strip()
    if not close:
        return "turn['content']"
    text = f"turn['content'].split({_quoted(close)})[-1].lstrip('\\n')"
    return f"{text} if turn['role'] == 'assistant' and {_quoted(close)} in turn['content'] else turn['content']"


def _quoted(text: str) -> str:
    """Write a text as a string of Jinja, which reads JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _bool(value: Any) -> str:
    return "true" if value else "false"


def record(template: Template) -> str:
    """Write a template as a comment of Jinja, from which `recorded` reads it."""
    # Outside of its texts JSON has no "#", so that none of them can end the comment.
    row = json.dumps(template.to_row(), ensure_ascii=False).replace("#", "\\u0023")
    return f"{RECORD}{row}{RECORD_END}"


def recorded(text: str, where: str = CHAT_TEMPLATE) -> tuple[Template | None, str]:
    """Read (the template in a chat template's comment, the text behind it); (None, text) without a comment.

    Raises InputError as ``WHERE: reason`` for a comment that is damaged.
    """
    if not text.startswith(RECORD) or RECORD_END not in text:
        return None, text
    row, _, rest = text.removeprefix(RECORD).partition(RECORD_END)
    try:
        return Template.from_row(json.loads(row), where), rest
    except json.JSONDecodeError:
        raise InputError(f"{where}: its template is no JSON; export the model again") from None


def chat_template(folder: Path, template: Template) -> str:
    """The chat template with which a folder's tokenizer gives the prompts of the training, `record` in front of it: the
    folder's own if it does, which may know more, such as tools; else ours.

    Raises InputError that names the first probe dialogue with other ids, where none does.
    """
    theirs = load_by_transformers(folder)
    probes = list(probes_of(Renderer(template, load_tokenizer(folder))))
    own = [recorded(theirs.chat_template)[1]] if isinstance(theirs.chat_template, str) else []
    ours = [to_jinja(template, *spaces) for spaces in (product(("", " "), repeat=2) if template.apart else [("", "")])]
    problems = []
    for text in (*own, *ours):
        text = record(template) + text
        problems.append(first_difference(probes, theirs, text))
        if problems[-1] is None:
            return text
    raise InputError(
        f"template {template.name!r}: no chat template gives the tokenizer the prompts of the training, as "
        f"{problems[len(own)]}; give servers prompts as ids, or talk to the model without --serve"
    )


Probe = tuple[list[dict[str, str]], dict[str, bool], list[int]]
"""Messages, further arguments of the rendering, and the ids that it must give."""


def probes_of(renderer: Renderer) -> Iterator[Probe]:
    """Make probe dialogues: of one turn and of several, with a system turn and without."""
    template = renderer.template
    # Texts that are encoded apart begin and end with what a tokenizer may join or leave out; cleaned ones never do.
    for texts in (INNER,) if template.apart else (INNER, OUTER):
        turns = [Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]
        for system in ([], [SYSTEM]) if template.system else ([],):
            for length in (1, 3, 5):
                given = [*system, *turns[:length]]
                messages = [{"role": turn.role, "content": turn.text} for turn in given]
                yield messages, {}, renderer.render_prompt(given).tolist()
                for think in (False, True) if template.empty_thinking else ():
                    yield messages, {"enable_thinking": think}, renderer.render_prompt(given, think).tolist()


def first_difference(probes: list[Probe], theirs: Any, text: str) -> str | None:
    """Tell where a chat template gives a transformers tokenizer other ids; None where it gives the same."""
    for messages, more, wanted in probes:
        try:
            found = theirs.apply_chat_template(
                messages, chat_template=text, add_generation_prompt=True, return_dict=False, **more
            )
        except Exception as error:  # a folder's own template may raise anything
            found, reason = None, " ".join(str(error).split())[:80]
        if found != wanted:
            roles = ", ".join(message["role"] for message in messages)
            start = f"the probe {roles} that ends with {messages[-1]['content']!r}"
            if found is None:
                return f"{start} raises {reason}"
            place = next(
                (n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
            )
            return f"{start} has {found[place : place + 3]} at id {place}, the training {wanted[place : place + 3]}"
    return None
