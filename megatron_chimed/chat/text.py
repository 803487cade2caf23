"""Tokens to text as they come: nothing is shown that a later token could change."""

import re

from megatron_chimed.inference.thinking import mark_names, marks_of, split_thinking
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.tokenizer import Tokenizer

BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TextStream:
    """The text of an answer in pieces, which together are `tokenizer.decode` of all its tokens.

    Two things are held back until more is known. Pieces that are single bytes (SentencePiece's byte fallback): whether
    a run of them is text is known at its end, as decoders of Hugging Face turn a whole run into replacement characters
    when one byte of it is wrong. And replacement characters at the end: a character of a byte-level vocabulary may not
    be complete.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """The text that is certain with one more token, and was not before; often empty."""
        self.ids.append(token)
        # A special token leaves no trace, and so does not end a run of bytes.
        if BYTE.fullmatch(self.tokenizer.id_to_token(token)) or not self.tokenizer.decode([token]):
            return ""
        return self._show(self.tokenizer.decode(self.ids).rstrip("\ufffd"))

    def rest(self) -> str:
        """What was held back; the answer is at its end."""
        return self._show(self.tokenizer.decode(self.ids))

    def _show(self, text: str) -> str:
        new = text[len(self.shown) :]
        self.shown += new
        return new


class AnswerStream:
    """The text of an answer in pieces as `TextStream` gives them, without what the model thought in front of it.

    thinking: what it has thought so far. shown: the answer so far.
    """

    def __init__(self, renderer: Renderer):
        self.tokenizer, self.marks, self._names = renderer.tokenizer, marks_of(renderer.template), mark_names(renderer)
        self.thinking, self.shown = "", ""
        self._stream, self._spelled = TextStream(self.tokenizer), ""

    def add(self, token: int) -> str:
        """The text of the answer that is certain with one more token, and was not before; often empty."""
        if token in self._names:
            self._spelled += self._stream.rest() + self._names[token]
            self._stream = TextStream(self.tokenizer)
        else:
            self._spelled += self._stream.add(token)
        return self._show(at_end=False)

    def rest(self) -> str:
        """What was held back; the answer is at its end."""
        self._spelled += self._stream.rest()
        return self._show(at_end=True)

    def _show(self, at_end: bool) -> str:
        """The answer's text beyond what was shown. What may become a mark around thinking is held back."""
        text, begun = self._spelled, self._spelled.lstrip()
        if self.marks and begun.startswith(self.marks.opening):
            certain = self._spelled if at_end else _without_start_of(self.marks.closing, self._spelled)
            self.thinking, text = split_thinking(certain, self.marks)
        elif self.marks and not at_end and self.marks.opening.startswith(begun):
            return ""
        new = text[len(self.shown) :]
        self.shown += new
        return new


def _without_start_of(mark: str, text: str) -> str:
    """A text without its end where that is the beginning of a mark which is not there yet."""
    lengths = range(0 if mark in text else len(mark) - 1, 0, -1)
    return next((text[:-length] for length in lengths if text.endswith(mark[:length])), text)
