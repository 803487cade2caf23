"""Find training text that also stands in an evaluation set, by common 13-grams.

A token is one Chinese character (kana and hangul too), or one run of other letters and digits: a Latin word, a number.
Width, case, white space and punctuation do not count. Two texts overlap when they share 13 tokens in a row; a text of
the evaluation set with fewer tokens overlaps only with a text that equals it. In a dialogue, this last rule holds for
the opening question alone: what is said later is often short and the same everywhere (嗯; 好的，谢谢), and would take
half of all dialogues along.

The rule is strict: 13 Chinese characters are some eight words, and formulas of a source count as well. Of the sample of
Chinese-medical-dialogue-data, whose answers are made of such formulas, a tenth set aside takes along half of the rest.
Source: the contamination rule of GPT-3 (Brown et al., "Language models are few-shot learners", 2020, appendix C),
whose words are tokens here.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.data.json_values import strings_of
from megatron_chimed.data.sources import (
    FORMATS,
    Fault,
    bounded_lines,
    read_json_rows,
    read_rows,
    suffix_of,
    too_long,
)
from megatron_chimed.errors import InputError

GRAM = 13
CHUNK = 1 << 22  # hashes that wait to be sorted in: bounds what building an index needs beside the index
POWERS = np.array([pow(0xD1342543DE82EF95, n, 1 << 64) for n in range(GRAM)], dtype=np.uint64)
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def tokens(text: str) -> list[str]:
    """Split a text into the tokens that are compared.

    >>> tokens("血压120/80mmHg，ＯＫ！")
    ['血', '压', '120', '80mmhg', 'ok']
    """
    return TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(1 << 16)
def _word_code(word: str) -> int:
    """Hash a token of several characters to 64 bits."""
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def gram_hashes(text: str, *, short: bool = True) -> np.ndarray:
    """Hash the text's 13-grams in order: uint64 [tokens - 12].

    A shorter text is one gram if `short`, else none; a text without a token has none. A hash is the polynomial of the
    13 mixed token codes in arithmetic modulo 2^64, the same on every machine.
    """
    words = tokens(text)
    if not words or (len(words) < GRAM and not short):
        return np.empty(0, dtype=np.uint64)
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    characters = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    # No token has the code 0, so a short text, which is filled up with it, is no part of a longer one.
    values = np.zeros(max(GRAM, len(words)), dtype=np.uint64)
    values[: len(words)] = characters[np.cumsum(lengths) - lengths]
    for place in np.flatnonzero(lengths > 1):
        values[place] = _word_code(words[place])
    values *= np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(29)  # spreads codes that differ in a few bits
    values *= np.uint64(0xBF58476D1CE4E5B9)
    return np.lib.stride_tricks.sliding_window_view(values, GRAM) @ POWERS


class OverlapIndex:
    """The 13-grams of evaluation texts, 8 bytes each. Two that differ are taken for equal once in 10^19 pairs."""

    def __init__(self, texts: Iterable[str]):
        self.grams = np.empty(0, dtype=np.uint64)
        waiting, size = [], 0
        for text in texts:
            waiting.append(gram_hashes(text))
            size += len(waiting[-1])
            if size > max(CHUNK, len(self.grams)):  # in proportion, so that all sorting together stays linear
                self.grams, waiting, size = np.unique(np.concatenate([self.grams, *waiting])), [], 0
        self.grams = np.unique(np.concatenate([self.grams, *waiting]))

    def overlaps(self, text: str) -> bool:
        """Whether a text shares a 13-gram with one of the evaluation texts, or equals a shorter one of them."""
        return self._holds(gram_hashes(text))

    def overlaps_dialogue(self, opening: str, others: Iterable[str]) -> bool:
        """`overlaps` for the opening question of a dialogue, and whether one of its other turns shares a 13-gram."""
        if self.overlaps(opening):
            return True
        # Fewer characters are fewer tokens, which saves the work for many a turn.
        return any(self._holds(gram_hashes(text, short=False)) for text in others if len(text) >= GRAM)

    def _holds(self, hashes: np.ndarray) -> bool:
        """Whether one of the hashes, uint64 [n], is in the index."""
        if not len(self.grams) or not len(hashes):
            return False
        places = np.searchsorted(self.grams, hashes)
        return bool((self.grams[np.minimum(places, len(self.grams) - 1)] == hashes).any())


def evaluation_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """`read_texts` of several files. Raises InputError for one without a text too: it would exclude nothing."""
    for path in paths:
        found = False
        for text in read_texts(path):
            found = found or TOKEN.search(unicodedata.normalize("NFKC", text)) is not None
            yield text
        if not found:
            raise InputError(f"{path}: holds no text; give an evaluation set, or leave the file out")


def read_texts(path: str | Path) -> Iterator[str]:
    """Read every string in an evaluation file: values (not keys) at any depth of .json, .jsonl and .csv rows; of any
    other file each line, divided at tabs. Encoding as for sources.

    Raises InputError as ``file:line: reason`` at the first bad row: a set that is read in part protects in part.
    """
    suffix = suffix_of(path)
    if suffix == ".json":
        rows: Iterator[tuple[int, Any]] = read_json_rows(path, sections=True)
    elif suffix in FORMATS:
        rows = read_rows(path)
    else:
        rows = _lines(path)
    for number, row in rows:
        if isinstance(row, Fault):
            raise InputError(f"{path}:{number}: {row}; mend the evaluation set")
        yield from strings_of(row)


def _lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Read (number, fields between tabs) of each line of a text."""
    for number, line in bounded_lines(path):
        fields = line and line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        yield number, too_long() if line is None else fields
