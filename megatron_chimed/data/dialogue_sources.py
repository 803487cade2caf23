"""The --source flags: which files are read by which reader under which name."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.data.dialogue_readers import READERS
from megatron_chimed.data.json_values import strings_of
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import glob_inputs

EXPECTED = f"expected NAME=PATH or LABEL:NAME=PATH with NAME one of {', '.join(READERS)}"
CHUNK_ROWS, CHUNK_CHARACTERS = 256, 1 << 20  # for one piece of work


@dataclass(frozen=True)
class SourceFile:
    """One input. label: the source's name in reports and metrics; name: of the file, unique within the label."""

    label: str
    reader: str
    path: str
    name: str


def find_sources(specs: list[str]) -> list[SourceFile]:
    """The files of ``NAME=PATH`` and ``LABEL:NAME=PATH`` flags in their order; PATH may be a glob.

    Raises InputError: another form, an unknown reader, no such file, a file given twice under one label.
    """
    found: list[tuple[str, str, str]] = []
    for spec in specs:
        head, equals, pattern = spec.partition("=")
        label, colon, reader = head.rpartition(":")
        label = label if colon else head
        if not equals or not pattern or not re.fullmatch(r"[\w.\-]+", label):
            raise InputError(f"--source {spec}: {EXPECTED}")
        if reader not in READERS:
            raise InputError(f"--source {spec}: there is no reader {reader!r}; {EXPECTED}")
        paths = [pattern] if Path(pattern).is_file() else glob_inputs(pattern)
        paths = [path for path in paths if Path(path).is_file()]
        if not paths:
            raise InputError(f"--source {spec}: no such file: {pattern}")
        found += [(label, reader, path) for path in paths]
    return [SourceFile(label, reader, path, _name(label, path, found)) for label, reader, path in found]


def _name(label: str, path: str, found: list[tuple[str, str, str]]) -> str:
    """A file's name, or its whole path where its label has another file of that name."""
    others = [other for other_label, _, other in found if other_label == label]
    if sum(Path(other).samefile(path) for other in others) > 1:
        raise InputError(f"{path}: given twice for the source {label!r}; give it once")
    return Path(path).name if sum(Path(other).name == Path(path).name for other in others) == 1 else path


def read_chunks(source: SourceFile) -> Iterator[list[tuple[int, Any]]]:
    """The rows of a file, (line, row or Fault), in pieces of bounded size. Raises InputError on a file at fault."""
    chunk, size = [], 0
    for line, row in READERS[source.reader].rows(source.path):
        chunk.append((line, row))
        size += sum(map(len, strings_of(row)))
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
