"""The ids of many texts, by a faster library (splintr) for as long as it proves equal to the tokenizer itself.

It serves byte-pair tokenizers. In each process it first has to agree on `hostile_texts` and then on one text in a
hundred of every batch, which the tokenizer encodes too. The first difference is an error, upon which `guarded` does all
of the work again with the tokenizer alone: no output holds ids of both. The library finds special tokens in any text;
where text is to stay text, the texts in which it found one go to the tokenizer.
"""

import contextlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
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
_opened_in: int | None = None  # the process in which the library was opened first, and started threads


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


class BulkEncoder:
    """Encoder of many texts with the ids of a tokenizer. It can be pickled; each process opens the library anew. One
    that is forked from a process which has opened it goes on with what that has, or with the tokenizer alone."""

    def __init__(self, tokenizer: Reference):
        self.tokenizer = tokenizer
        self._alone = False  # True where a run of the tokenizer alone has sent it to another process
        self._proven: set[tuple[bool, bool]] = set()
        self._library: dict[bool, Any] = {}  # by add_special: it puts special tokens around a text as its file says
        self._is_open, self._seen = False, 0

    def __getstate__(self) -> dict:
        """The tokenizer, and whether it works alone here."""
        return {"tokenizer": self.tokenizer, "alone": self._alone or _alone}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["tokenizer"])
        self._alone = state["alone"]

    def encode(self, texts: list[str], parse_special: bool, add_special: bool) -> tuple[np.ndarray, np.ndarray]:
        """`Tokenizer.encode_flat`. Raises TokenizersDiffer."""
        self._seen += 0 if self._is_open else sum(map(len, texts))
        if not self._is_open and self._seen >= OPEN_AT and not (self._alone or _alone):
            self._open()
        if not self._library or self._alone or _alone or not texts:
            return flatten(self.tokenizer.encode_batch(texts, parse_special=parse_special, add_special=add_special))
        mode = (parse_special, add_special)
        if mode not in self._proven:
            self._proven.add(mode)
            size = self.tokenizer.vocab_size
            pieces = [self.tokenizer.decode([number]) for number in range(0, size, max(1, size // PIECES))]
            hostile = [*hostile_texts(pieces), *(f"a{one} b{one}{one}" for one in self._special.values())]
            self._compare(hostile, *self._encode(hostile, *mode), range(len(hostile)), mode)
        ids, lengths = self._encode(texts, *mode)
        sample = random.Random(len(ids)).sample(range(len(texts)), -(-len(texts) // ONE_IN))
        self._compare(texts, ids, lengths, sample, mode)
        return ids, lengths

    def _open(self) -> None:
        """Open the library, if it is installed and reads this kind of tokenizer."""
        self._is_open = True
        global _opened_in
        content = self.tokenizer.to_json()
        if content is None or _opened_in not in (None, os.getpid()):  # its threads are lost in a fork: it would wait
            return
        _opened_in = os.getpid()
        settings = json.loads(content)
        try:
            import splintr

            for add_special in (False, True):
                more = {} if add_special else {"post_processor": None}
                self._library[add_special] = splintr.from_json_bytes(json.dumps(settings | more).encode())
        except Exception:  # not installed, or no tokenizer that it knows: it says so in many ways
            self._library = {}
            return
        self._special = {one["id"]: one["content"] for one in settings["added_tokens"] if one["special"]}

    def _encode(self, texts: list[str], parse_special: bool, add_special: bool) -> tuple[np.ndarray, np.ndarray]:
        """Encode by the library, but for texts with special tokens that are to stay text."""
        encode = self._library[add_special].encode_flat  # for a batch it starts threads, and takes longer
        rows = [encode(text) for text in texts]
        ids, lengths = np.frombuffer(b"".join(rows), "<i4"), np.fromiter(map(len, rows), np.int32, len(rows)) // 4
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
        f"warning: splintr gives other ids than the tokenizer for {text!r}; all is encoded by the tokenizer itself, "
        "from the start, which takes several times as long",
        file=sys.stderr,
    )
    with tokenizers_alone():
        return run(text)


def alone_because(difference: str | None) -> dict[str, str]:
    """What a manifest says of its tokenizer: nothing, or the text for which the faster library gave other ids."""
    return {} if difference is None else {"alone_because_of": difference}
