"""Encoding of a text file: told by its bytes, proven on the whole file, and read as UTF-8.

What is no UTF-8 and has no mark of UTF-16 is judged by chardet, and its answer is taken only when the whole file
decodes that way, into characters that people write: GB18030 decodes nearly any bytes of Big5, into characters that
hardly anybody uses.
"""

import codecs
import functools
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from megatron_chimed.data.tables import SUFFIXES
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import BOM, open_input

UTF8 = "utf-8"
CHINESE = {
    "gb18030": ("gb18030", "gbk", "gb2312", "cp936"),
    "big5hkscs": ("big5", "big5-hkscs", "big5hkscs", "cp950"),
}
"""Encodings by Python's names, and chardet's names for what they read."""

MULTIBYTE = {name for names in CHINESE.values() for name in names} | {"euc-kr", "cp949", "johab", "euc-jp", "euc-tw",
             "shift_jis", "cp932", "hz", "hz-gb-2312", "iso-2022-jp", "iso-2022-kr"}  # fmt: skip

TOLERANCE = 0.001
"""Share of characters that may be damaged; the rows with them are counted as malformed."""

COMMON = 0.75
"""Share of the characters beyond ASCII that must be common ones. On samples of 80 bytes and more, right text has at
least 0.82 and mojibake at most 0.72 (tests/data/test_encodings.py)."""

PUNCTUATION = set("，。！？：；（）、～“”‘’《》—…·％　") | {chr(code) for code in range(0xFF10, 0xFF5B)}
BLOCK = 1 << 20
SAMPLE = 1 << 16
"""Bytes that are judged, from the first that is not ASCII on."""


def detect_encoding(path: str | Path) -> str:
    """The encoding of a file by Python's name: utf-8, utf-16, utf-16-le, utf-16-be, gb18030 or big5hkscs.

    Damage in up to TOLERANCE of the characters is let pass. Raises InputError when it is none of these.
    """
    status = os.stat(path) if Path(path).is_file() else None
    return _detect(str(path), status and (status.st_size, status.st_mtime_ns))


def other_encodings(paths: Iterable[str | Path]) -> dict[str, str]:
    """Name the encoding of each text file that is not UTF-8; one that is none, and is read line by line, is "unknown".

    Tables have none.
    """
    found = {}
    for path in paths:
        if Path(path).suffix.lower() in SUFFIXES:
            continue
        try:
            encoding = detect_encoding(path)
        except InputError:
            encoding = "unknown"
        if encoding != UTF8:
            found[str(path)] = encoding
    return found


@functools.lru_cache(4096)
def _detect(path: str, version: tuple[int, int] | None) -> str:
    """`detect_encoding`, once for each version of a file."""
    if _damage(path, UTF8) <= TOLERANCE:
        return UTF8
    sample = _sample(path)
    encoding = _judge(sample)
    if encoding and _damage(path, encoding) <= TOLERANCE:
        return encoding
    guess = _guess(sample)
    looks = f", and looks like {guess}" if guess and not encoding else ""
    raise InputError(f"{path}: neither UTF-8, UTF-16, GB18030 nor Big5{looks}; convert it to UTF-8")


def _damage(path: str, encoding: str) -> float:
    """The share of a file's characters that this encoding does not decode; 0 for an empty file."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    characters = bad = 0
    with open_input(path) as file:
        ended = False
        while not ended:
            content = file.read(BLOCK)
            ended = not content
            text = decoder.decode(content, final=ended)
            characters, bad = characters + len(text), bad + text.count("\ufffd")
    return bad / max(1, characters)


def _sample(path: str) -> bytes:
    """The bytes that are judged: the mark, or a part that begins in the line of the first byte beyond ASCII."""
    with open_input(path) as file:
        content = start = file.read(BLOCK)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return start[:SAMPLE]
        while content and content.isascii() and b"\0" not in content:
            content = file.read(BLOCK)
        if b"\0" in start:
            return start[:SAMPLE]
        first = re.search(rb"[\x80-\xff]", content)
        place = content.rfind(b"\n", 0, first.start()) + 1 if first else 0
        return content[place : place + SAMPLE]


def _judge(sample: bytes) -> str | None:
    """The encoding that a sample is written in, None if it is none of those that are read."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in sample:  # the zeros of ASCII's line breaks and commas
        wide = (encoding for encoding in ("utf-16-le", "utf-16-be") if _is_written(sample, encoding))
        return next(wide, None)
    for encoding, names in CHINESE.items():
        # Without its damaged bytes, at the first of which chardet gives an encoding up.
        whole = sample.decode(encoding, "ignore").encode(encoding)
        if _guess(whole) in names and _is_written(whole, encoding):
            return encoding
    return None


def _guess(sample: bytes) -> str | None:
    """chardet's best guess among encodings of Chinese, Japanese and Korean, in lower case."""
    import chardet  # half of its languages load with it

    # Long runs of letters say nothing, and chardet's patterns take the square of their length.
    shorter = re.sub(rb"([A-Za-z]{64})[A-Za-z]+", rb"\1", sample)
    names = [str(guess["encoding"]).lower() for guess in chardet.detect_all(shorter, ignore_threshold=True)]
    return next((name for name in names if name in MULTIBYTE), None)


def _is_written(sample: bytes, encoding: str) -> bool:
    """Whether a sample, decoded so, has the characters that people write."""
    beyond = [character for character in sample.decode(encoding, "ignore") if not character.isascii()]
    return bool(beyond) and sum(map(_is_common, beyond)) >= COMMON * len(beyond)


@functools.lru_cache(1 << 16)
def _is_common(character: str) -> bool:
    """Whether a character is Chinese punctuation, or of the commoner level of GB2312 or of Big5."""
    if character in PUNCTUATION:
        return True
    for encoding, first, last in (("gb2312", 0xB0, 0xD7), ("big5", 0xA4, 0xC6)):
        code = character.encode(encoding, "ignore")
        if code and first <= code[0] <= last:
            return True
    return False


@contextmanager
def open_utf8(path: str | Path, *, strict: bool = True) -> Iterator[IO[bytes]]:
    """Open a text file of any of these encodings as UTF-8 bytes, without a mark; through gzip if it ends in .gz.

    In another encoding a byte that is no character becomes U+FFFD; the bytes of a UTF-8 file stay. strict: raise
    InputError as `detect_encoding`; otherwise such a file is read as it is. Raises InputError as `open_input`.
    """
    try:
        encoding = detect_encoding(path)
    except InputError:
        if strict or not Path(path).is_file():
            raise
        encoding = UTF8
    with open_input(path) as file:
        if encoding == UTF8:
            if file.read(len(BOM)) != BOM:
                file.seek(0)
            yield file
        else:
            yield io.BufferedReader(_Transcoded(file, encoding), BLOCK)


class _Transcoded(io.RawIOBase):
    """The UTF-8 bytes of a file in another encoding."""

    def __init__(self, file: IO[bytes], encoding: str):
        super().__init__()
        self.file, self.decoder = file, codecs.getincrementaldecoder(encoding)("replace")
        self.ready, self.ended = b"", False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray) -> int:
        """Fill the buffer as far as there is something; 0 at the end."""
        while not self.ready and not self.ended:
            content = self.file.read(BLOCK)
            self.ended = not content
            self.ready = self.decoder.decode(content, final=self.ended).encode()
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count
