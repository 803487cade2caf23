"""Read raw files of the sources as rows: JSON lines, JSON arrays, CSV tables, Parquet and Arrow."""

import csv
import io
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_chimed import jsonl
from megatron_chimed.data import tables
from megatron_chimed.data.encodings import detect_encoding, open_utf8
from megatron_chimed.data.json_values import read_json_values, strings_of
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import parse_line


@dataclass(frozen=True)
class Fault:
    """Why a row is none; `str` gives the reason."""

    reason: str

    excerpt: bytes | str = ""
    """What stands there, or the beginning of it."""

    def __str__(self) -> str:
        """The reason."""
        return self.reason


Row = dict | Fault
FORMATS = (".jsonl", ".json", ".csv", *tables.SUFFIXES)


def suffix_of(path: str | Path) -> str:
    """Return the ending that tells the format, without a .gz behind it: ".jsonl"."""
    return Path(str(path).removesuffix(".gz")).suffix.lower()


def read_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """Yield (line, or number of the element or row, from 1; row) by the file's ending, .gz behind it or not.

    Whether JSON stands in lines or in an array, its content tells. Raises InputError when the file as a whole cannot be
    read: missing, another format, an unknown encoding, no array.
    """
    suffix = suffix_of(path)
    readers = {".jsonl": read_json_rows, ".json": read_json_rows, ".csv": _read_csv}
    readers |= dict.fromkeys(tables.SUFFIXES, tables.read_table)
    if suffix not in readers:
        raise InputError(f"{path}: unknown format {suffix!r}; give {', '.join(FORMATS)}; text also with .gz")
    for number, row in readers[suffix](path):
        if not isinstance(row, dict | Fault):
            row = Fault(f"expected a JSON object, found {type(row).__name__}", " | ".join(strings_of(row)))
        yield number, row


def bounded_lines(path: str | Path, *, strict: bool = True) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number from 1, line with its end) in UTF-8, as `open_utf8`; None for a line that is too long to hold."""
    with open_utf8(path, strict=strict) as file:
        number, limit = 0, jsonl.MAX_LINE_BYTES
        while line := file.readline(limit + 1):
            number += 1
            if len(line) <= limit or line.endswith(b"\n"):
                yield number, line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(limit)
            yield number, None


def too_long() -> Fault:
    """Make the fault of a row or dialogue that is not read, as it would not fit into memory."""
    return Fault(f"line too long: over {jsonl.MAX_LINE_BYTES} bytes")


def _read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    for number, line in bounded_lines(path, strict=False):  # a line that is no UTF-8 is a fault by itself
        if line is None:
            yield number, too_long()
        elif not line.isspace():
            try:
                yield number, orjson.loads(line)
            except ValueError:  # not JSON, or beyond orjson: NaN, half a character
                try:
                    yield number, parse_line(line)
                except InputError as error:
                    yield number, Fault(str(error), line)


def read_json_rows(path: str | Path, *, sections: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a JSON file: of JSON lines, or of an array's elements, as its first two lines tell.

    sections: it may also be an object of arrays (see `read_json_values`); one row alone is then taken for that.
    """
    numbered = bounded_lines(path, strict=False)
    lines = ((line or b"").strip() for _, line in numbered if line is None or not line.isspace())
    first, second = next(lines, b""), next(lines, b"")
    if first.startswith(b"["):
        # Of rows that are arrays themselves each line is whole.
        in_lines = bool(second) and first.endswith(b"]") and second.startswith(b"[")
    elif suffix_of(path) == ".jsonl" and not sections:
        in_lines = True  # a broken line is a fault by itself
    else:
        in_lines = first.startswith(b"{") and first.endswith(b"}") and (second.startswith(b"{") or not sections)
    return _read_json_lines(path) if in_lines else read_json_values(path, sections=sections)


def _read_csv(path: str | Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(1 << 24)
    with open_utf8(path) as file:
        reader = csv.reader(io.TextIOWrapper(file, "utf-8", errors="replace", newline=""), strict=True)
        columns, line = None, 0
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):  # every row behind it is inside that quote
                    raise InputError(f"{path}:{line}: a quote that opens in this row is not closed; mend it") from None
                yield line, Fault(f"not CSV ({error})")
                continue
            if columns is None:
                columns = fields
            elif len(fields) not in (0, len(columns)):
                yield line, Fault(f"{len(fields)} fields in a table of {len(columns)} columns", ",".join(fields))
            elif any("\ufffd" in field for field in fields):
                yield line, Fault(f"invalid {detect_encoding(path)} bytes", ",".join(fields))
            elif fields:
                yield line, dict(zip(columns, fields, strict=True))


def fill_template(template: str, row: dict) -> str:
    """``"{ask}\\n{answer}"`` with the row's fields. Raises InputError with the reason: a missing or non-text field."""
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    for name in sorted(fields):
        if name not in row:
            raise InputError(f"missing key: {name!r}")
        if not isinstance(row[name], str):
            raise InputError(f"not a string: field {name!r} holds {type(row[name]).__name__}")
    text = template.format_map(row).strip()
    if not text:
        raise InputError("empty document")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a character, such as JSON's "\\ud800"
        raise InputError(f"unpaired surrogate (character {error.start})") from None
    return text
