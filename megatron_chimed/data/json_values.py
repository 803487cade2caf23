"""Read the values of a large JSON file one by one: the elements of an array, or of the arrays in an object."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megatron_chimed import jsonl
from megatron_chimed.data.encodings import open_utf8
from megatron_chimed.errors import InputError

BLOCK = 1 << 20  # bytes
NUMBER = 64  # characters behind a value that must be there: it could be a number that goes on in the next block
DECODER = json.JSONDecoder()


def read_json_values(path: str | Path, *, sections: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, element) of the array that a file holds.

    sections: the file may also hold an object of arrays, ``{"category": [...], ...}``, whose elements are numbered
    through. Memory is bounded by one element. A byte that is not UTF-8 becomes an unpaired surrogate, U+DC80 to U+DCFF,
    so that only its row is lost. Raises InputError as ``file:line: reason`` where the JSON is broken; the elements
    before that place have been yielded.
    """
    with open_utf8(path, strict=False) as file:
        text = _Text(file, path)
        opening = text.peek()
        if opening == "[":
            elements = text.items("[", "]")
        elif opening == "{" and sections:
            elements = _section_elements(text)
        else:
            kinds = {"{": "object", '"': "string", "": "file without content"}
            expected = "an array, or an object of arrays" if sections else "an array of rows"
            raise InputError(f"{path}: holds a JSON {kinds.get(opening, 'value')}; expected {expected}")
        yield from enumerate(elements, start=1)
        if text.peek():
            raise text.fault("something follows its end")


def strings_of(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value in their order, whatever its depth; keys of objects are none of them."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            todo += reversed(value)
        elif isinstance(value, dict):
            todo += reversed(value.values())


def _section_elements(text: "_Text") -> Iterator[Any]:
    """Yield the elements of all arrays in an object; a value that is no array is passed on as it is."""
    for key in text.items("{", "}"):
        if not isinstance(key, str):
            raise text.fault("a key is no string")
        text.take(":")
        yield from text.items("[", "]") if text.peek() == "[" else [text.value()]


class _Text:
    """The text of a file from a place that moves on; what lies before it is forgotten."""

    def __init__(self, file: IO[bytes], path: str | Path):
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.buffer, self.place, self.ended = "", 0, False
        self.line = 1  # on which the buffer begins

    def fault(self, reason: str) -> InputError:
        """Make the error for a text that is broken at this place."""
        line = self.line + self.buffer.count("\n", 0, self.place)
        return InputError(f"{self.path}:{line}: not a JSON file ({reason}); mend it")

    def more(self) -> None:
        """Read on, as much as there is already and a block at least, so that long values cost linear time."""
        self.line += self.buffer.count("\n", 0, self.place)
        rest = self.buffer[self.place :]
        content = self.file.read(max(BLOCK, len(rest)))
        self.buffer, self.place, self.ended = rest + self.decoder.decode(content, final=not content), 0, not content

    def peek(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while True:
            while self.place < len(self.buffer):
                if self.buffer[self.place] not in " \t\r\n":
                    return self.buffer[self.place]
                self.place += 1
            if self.ended:
                return ""
            self.more()

    def take(self, character: str) -> None:
        """Go past this character. Raises InputError when another one comes next."""
        if (found := self.peek()) != character:
            raise self.fault(f"expected {character!r}, found {found!r}" if found else "it ends too early")
        self.place += 1

    def value(self) -> Any:
        """Read the next JSON value."""
        self.peek()
        while True:
            reason = None
            try:
                value, end = DECODER.raw_decode(self.buffer, self.place)
                if self.ended or end + NUMBER < len(self.buffer):
                    self.place = end
                    return value
            except json.JSONDecodeError as error:
                reason = error.msg
            except RecursionError:
                raise self.fault("nested too deeply") from None
            except ValueError:
                raise self.fault("a number is too long") from None
            if self.ended:
                raise self.fault(reason)
            if len(self.buffer) - self.place > jsonl.MAX_LINE_BYTES:
                limit = f"a value of over {jsonl.MAX_LINE_BYTES} characters"
                raise self.fault(f"{reason}, or {limit}" if reason else limit)
            self.more()

    def items(self, opening: str, closing: str) -> Iterator[Any]:
        """Read the values between the brackets; of an object the keys, each of whose values the caller takes."""
        self.take(opening)
        if self.peek() == closing:
            self.place += 1
            return
        while True:
            yield self.value()
            if self.peek() == closing:
                self.place += 1
                return
            self.take(",")
