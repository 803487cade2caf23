"""Prompts to token ids, the same for every model that we run ourselves.

A prompt with turns is rendered as in training (`renderer.Renderer`). A plain text, which likelihoods are taken of, is
the template's BOS and the ids of the text; no special token is ever made of its characters.
"""

from collections.abc import Sequence

import numpy as np

from megatron_chimed.data.turns import CLOSING, OPENING
from megatron_chimed.errors import InputError
from megatron_chimed.inference.thinking import Marks, marks_of
from megatron_chimed.records import split_system
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import Tokenizer


def answer_marks(template: Template) -> Marks:
    """What is around the thinking in an answer: the template's marks, or the common ones where it has none."""
    return marks_of(template) or Marks(OPENING, CLOSING)


class Encoder:
    """Encodes prompts, makes those fit that are too long, and remembers them.

    cut: prompt -> [its tokens, tokens kept]. Left out are the oldest exchanges, but no system turn, then the oldest
    tokens of the user's text; of a plain text the oldest tokens behind BOS.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template):
        self.renderer = Renderer(template, tokenizer)
        self.tokenizer, self.template = tokenizer, template
        self.cut: dict[str, list[int]] = {}
        self.marks = answer_marks(template)

    def text(self, text: str, *, bos: bool | None = None) -> list[int]:
        """The ids of a plain text; bos None puts BOS in front where the template does."""
        ids = self.tokenizer.encode(text)
        wanted = self.template.bos if bos is None else bos
        return [self.tokenizer.bos_id, *ids] if wanted else ids

    def prompt(self, prompt: str, limit: int) -> list[int]:
        """At most `limit` ids of a prompt. Raises InputError if the template alone takes more."""
        turns = getattr(prompt, "turns", None)
        whole = self.text(prompt) if turns is None else self.renderer.render_prompt(turns).tolist()
        if len(whole) <= limit:
            return whole
        kept = self.tail(whole, limit) if turns is None else self._shorten(turns, limit)
        self.cut[prompt] = [len(whole), len(kept)]
        return kept

    def tail(self, ids: list[int], limit: int) -> list[int]:
        """The newest `limit` ids of a plain text, behind its BOS."""
        head = 1 if self.template.bos and ids[:1] == [self.tokenizer.bos_id] else 0
        return ids[:head] + ids[len(ids) - max(0, limit - head) :]

    def _shorten(self, turns: Sequence, limit: int) -> list[int]:
        """The newest exchanges of a prompt that fit behind its system turn, or what fits of the last question."""
        system, turns = split_system(turns)
        told = [] if system is None else [system]
        for start in range(2, len(turns), 2):
            ids = self.renderer.render_prompt([*told, *turns[start:]])
            if len(ids) <= limit:
                return ids.tolist()
        ids = self.renderer.render_prompt([*told, turns[-1]])
        ids = self.renderer.cut_prompt(ids, limit, system.text if system else self.template.default_system or "")
        if ids is None:
            raise InputError(
                f"{limit} tokens are left for a prompt, fewer than the template takes; make answers shorter"
            )
        return np.asarray(ids).tolist()

    def pair(self, context: str, ids: tuple[list[int], list[int]], limit: int) -> tuple[list[int], list[int]]:
        """(context ids, continuation ids) of at most `limit` tokens in all, the context cut where they are more."""
        before, after = ids
        if len(before) + len(after) <= limit:
            return before, after
        if len(after) >= limit:
            raise InputError(f"an option of {len(after)} tokens does not fit into the {limit} tokens of the model")
        kept = self.tail(before, limit - len(after))
        self.cut[context] = [len(before) + len(after), limit]
        return kept, after
