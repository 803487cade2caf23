"""A template as a chat template of transformers, a Jinja text, for servers that render prompts themselves."""

import json

from megatron_chimed.errors import InputError
from megatron_chimed.text.template import Template, as_plain


def to_jinja(template: Template, user_space: str = "", answer_space: str = "") -> str:
    """Write a template of plain texts as Jinja. A system message is a line in front of the next question.

    The spaces stand for the dummy prefix of SentencePiece, which some tokenizers put only in front of a whole text.
    Raises InputError for a template with tokens.
    """
    plain = as_plain(template)
    if plain is None:
        raise InputError(f"template {template.name!r}: only one of plain texts can be a chat template so far")
    prefix, suffix = (json.dumps(text, ensure_ascii=False) for text in (plain.user_prefix, plain.user_suffix))
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
