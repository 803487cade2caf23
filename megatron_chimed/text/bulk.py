"""The ids of many texts, by a faster library for as long as it proves equal to the tokenizer itself.

Byte-pair tokenizers are served by the first of LIBRARIES that agrees on `hostile_texts`, in each process, and then on
one text in a hundred of every batch, which the tokenizer encodes too. Where none agrees, and at the first difference
later on, `guarded` does all of the work again with the tokenizer alone: no output holds ids of both. The libraries find
special tokens in any text; where text is to stay text, the texts in which one was found go to the tokenizer.
"""

import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_chimed.text.probes import hostile_texts

ONE_IN = 100
"""Of so many texts of a batch, one is encoded by both."""

PIECES = 2000
"""Of a vocabulary, in the texts that the library must agree on first."""

OPEN_AT = 1 << 18
"""Characters seen in a process before the library is opened: to read a large vocabulary takes half a second."""

_alone = False  # whether the tokenizers themselves do all of the work
_opened_in: int | None = None  # the process in which a library was opened first, and started threads


class Reference(Protocol):
    """What is asked of a `Tokenizer`."""

    vocab_size: int

    def encode_batch(self, texts: list[str], *, parse_special: bool, add_special: bool) -> list[Sequence[int]]:
        """The ids of each text."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""

    def to_json(self) -> str | None:
        """The content of a tokenizer.json, if it is byte-pair."""


class TokenizersDiffer(Exception):
    """A text for which the faster library gives other ids than the tokenizer."""


def flatten(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Put lists or arrays of ids end to end: ids int32 [tokens], lengths int32 [rows]."""
    lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
    if rows and isinstance(rows[0], np.ndarray):
        return np.concatenate(rows).astype(np.int32, copy=False), lengths
    ids = (number for row in rows for number in row)
    return np.fromiter(ids, dtype=np.int32, count=int(lengths.sum())), lengths


Encode = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]


def _tokie(content: str) -> Encode:
    """Of a tokenizer.json: ids [tokens] and lengths [texts], int32. The fastest where merges go through whole texts."""
    import tokie

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(content, encoding="utf-8")
        library = tokie.Tokenizer.from_json(str(path))

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = library.encode_batch_flat(texts)
        return ids.astype(np.int32, copy=False), lengths.astype(np.int32)

    return encode


def _splintr(content: str) -> Encode:
    """The same. It remembers pieces, and so is the fastest where texts are cut into words before merges; and equal also
    where merges join parts of two characters, as some byte-level vocabularies have them."""
    import splintr

    library = splintr.from_json_bytes(content.encode())

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [library.encode_flat(text) for text in texts]  # its batches take longer
        return np.frombuffer(b"".join(rows), "<i4"), np.fromiter(map(len, rows), np.int32, len(rows)) // 4

    return encode


LIBRARIES = (_tokie, _splintr)


def _merges_whole_texts(settings: dict[str, Any]) -> bool:
    """Whether a tokenizer.json cuts no text into words, as none of SentencePiece's and LLaMA's kind does."""
    return (settings.get("pre_tokenizer") or {}).get("type") in (None, "Metaspace")


class BulkEncoder:
    """Encoder of many texts with the ids of a tokenizer. It can be pickled; each process opens a library anew. One that
    is forked from a process which has opened one works with the tokenizer alone: it would wait for lost threads."""

    def __init__(self, tokenizer: Reference):
        self.tokenizer = tokenizer
        self._alone = False  # True where a run of the tokenizer alone has sent it to another process
        self._serving: dict[tuple[bool, bool], Encode | None] = {}  # by (parse_special, add_special)
        self._seen = 0

    def __getstate__(self) -> dict:
        """The tokenizer, and whether it works alone here."""
        return {"tokenizer": self.tokenizer, "alone": self._alone or _alone}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["tokenizer"])
        self._alone = state["alone"]

    def encode(self, texts: list[str], parse_special: bool, add_special: bool) -> tuple[np.ndarray, np.ndarray]:
        """`Tokenizer.encode_flat`. Raises TokenizersDiffer."""
        if self._seen < OPEN_AT:
            self._seen += sum(map(len, texts))
        mode = (parse_special, add_special)
        library = None if self._alone or _alone or not texts or self._seen < OPEN_AT else self._library(mode)
        if library is None:
            return flatten(self.tokenizer.encode_batch(texts, parse_special=parse_special, add_special=add_special))
        ids, lengths = self._encode(library, texts, parse_special)
        sample = random.Random(len(ids)).sample(range(len(texts)), -(-len(texts) // ONE_IN))
        self._compare(texts, ids, lengths, sample, mode)
        return ids, lengths

    def _library(self, mode: tuple[bool, bool]) -> Encode | None:
        """What serves a mode in this process; None for the tokenizer. Raises TokenizersDiffer."""
        global _opened_in
        if _opened_in not in (None, os.getpid()):
            return None
        if mode not in self._serving:
            content = self.tokenizer.to_json()
            self._serving[mode] = None
            if content is not None:
                _opened_in = os.getpid()
                self._serving[mode] = self._choose(json.loads(content), mode)
        return self._serving[mode]

    def _choose(self, settings: dict[str, Any], mode: tuple[bool, bool]) -> Encode | None:
        """The first library that is installed, reads a tokenizer.json, and agrees. Raises TokenizersDiffer if there are
        some, and none agrees."""
        self._special = {one["id"]: one["content"] for one in settings["added_tokens"] if one["special"]}
        content = json.dumps(settings if mode[1] else settings | {"post_processor": None})
        size = self.tokenizer.vocab_size
        pieces = [self.tokenizer.decode([number]) for number in range(0, size, max(1, size // PIECES))]
        hostile = [*hostile_texts(pieces), *(f"a{one} b{one}{one}" for one in self._special.values())]
        difference = None
        for open_library in LIBRARIES if _merges_whole_texts(settings) else LIBRARIES[::-1]:
            try:
                library = open_library(content)
            except Exception:  # noqa: S112, not installed, or no tokenizer that it knows: it says so in many ways
                continue
            try:
                self._compare(hostile, *self._encode(library, hostile, mode[0]), range(len(hostile)), mode)
                return library
            except TokenizersDiffer as found:
                difference = found
        if difference:
            raise difference
        return None

    def _encode(self, library: Encode, texts: list[str], parse_special: bool) -> tuple[np.ndarray, np.ndarray]:
        """Encode by a library, but for texts with special tokens that are to stay text."""
        ids, lengths = library(texts)
        if parse_special:
            return ids, lengths
        found = np.isin(ids, np.fromiter(self._special, dtype=np.int32))
        if not found.any():
            return ids, lengths
        ends = np.cumsum(lengths)
        others = np.unique(np.searchsorted(ends, np.flatnonzero(found), side="right"))
        rows = np.split(ids, ends[:-1])
        for number, row in zip(
            others,
            self.tokenizer.encode_batch([texts[n] for n in others], parse_special=False, add_special=False),
            strict=True,
        ):
            rows[number] = np.asarray(row, dtype=np.int32)
        return flatten(rows)

    def _compare(
        self, texts: list[str], ids: np.ndarray, lengths: np.ndarray, sample: Sequence[int], mode: tuple[bool, bool]
    ) -> None:
        """Raise TokenizersDiffer at a text of the sample of which the tokenizer makes other ids."""
        ends = np.cumsum(lengths)
        rows = self.tokenizer.encode_batch([texts[n] for n in sample], parse_special=mode[0], add_special=mode[1])
        for number, row in zip(sample, rows, strict=True):
            if not np.array_equal(ids[ends[number] - lengths[number] : ends[number]], row):
                raise TokenizersDiffer(texts[number][:60])


@contextlib.contextmanager
def tokenizers_alone() -> Iterator[None]:
    """Have the tokenizers themselves do all of the work, also in worker processes that start here."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def guarded[T](run: Callable[[str | None], T]) -> T:
    """Call run(None), and where the faster library gives other ids, run(the text) with the tokenizers alone.

    run: all that ids go into; what it has written is to be of no use until it is done.
    """
    try:
        return run(None)
    except TokenizersDiffer as difference:
        text = str(difference)
    print(
        f"warning: the faster library gives other ids than the tokenizer for {text!r}; all is encoded by the "
        "tokenizer itself, from the start, which takes several times as long",
        file=sys.stderr,
    )
    with tokenizers_alone():
        return run(text)


def alone_because(difference: str | None) -> dict[str, str]:
    """What a manifest says of its tokenizer: nothing, or the text for which the faster library gave other ids."""
    return {} if difference is None else {"alone_because_of": difference}
