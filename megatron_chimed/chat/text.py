"""Tokens to text as they come: nothing is shown that a later token could change."""

import re

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
