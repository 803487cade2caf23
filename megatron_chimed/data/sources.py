"""Raw files of the sources as rows: JSON lines, JSON arrays, and CSV tables in UTF-8 or GB18030."""

import codecs
import csv
import io
import json
import string
from collections.abc import Iterator
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import open_input, parse_line, read_lines

Row = dict | str  # the fields of a row, or the reason why it is none
FORMATS = (".jsonl", ".json", ".csv")


def read_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """Yield (line, or number of the element in a JSON array, from 1; row) by the file's ending, .gz behind it or not.

    Raises InputError when the file as a whole cannot be read: missing, another format, an unknown encoding, no array.
    """
    suffix = Path(str(path).removesuffix(".gz")).suffix.lower()
    readers = {".jsonl": _read_json_lines, ".json": _read_json_array, ".csv": _read_csv}
    if suffix not in readers:
        raise InputError(f"{path}: unknown format {suffix!r}; give {', '.join(FORMATS)}, or one of them with .gz")
    yield from readers[suffix](path)


def _read_json_lines(path: str | Path) -> Iterator[tuple[int, Row]]:
    for number, line in read_lines(path):
        if line.strip():
            try:
                yield number, parse_line(line)
            except InputError as error:
                yield number, str(error)


def _read_json_array(path: str | Path) -> Iterator[tuple[int, Row]]:
    with open_input(path) as file:
        try:
            rows = json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds a JSON {type(rows).__name__}; expected an array of objects")
    for number, row in enumerate(rows, start=1):
        yield number, row if isinstance(row, dict) else f"expected a JSON object, found {type(row).__name__}"


def _read_csv(path: str | Path) -> Iterator[tuple[int, Row]]:
    encoding = detect_encoding(path)
    csv.field_size_limit(1 << 24)
    with open_input(path) as file:
        reader = csv.reader(io.TextIOWrapper(file, encoding, errors="replace", newline=""), strict=True)
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
                yield line, f"not CSV ({error})"
                continue
            if columns is None:
                columns = fields
            elif len(fields) not in (0, len(columns)):
                yield line, f"{len(fields)} fields in a table of {len(columns)} columns"
            elif any("\ufffd" in field for field in fields):
                yield line, f"invalid {encoding.removesuffix('-sig')} bytes"
            elif fields:
                yield line, dict(zip(columns, fields, strict=True))


def detect_encoding(path: str | Path, tolerance: float = 0.001) -> str:
    """ "utf-8-sig" or "gb18030": the one that reads the file, with bad bytes in up to `tolerance` of its characters.

    Raises InputError when it is neither.
    """
    for encoding in ("utf-8-sig", "gb18030"):
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        characters = bad = 0
        with open_input(path) as file:
            while block := file.read(1 << 20):
                text = decoder.decode(block)
                characters, bad = characters + len(text), bad + text.count("\ufffd")
        bad += decoder.decode(b"", final=True).count("\ufffd")
        if bad <= tolerance * characters:
            return encoding
    raise InputError(f"{path}: neither UTF-8 nor GB18030; convert it to UTF-8")


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
