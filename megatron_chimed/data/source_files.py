"""Find the files of --source flags with their readers and names, and prepare their rows in chunks."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_chimed.data.json_values import strings_of
from megatron_chimed.data.tables import table_files
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import expand
from megatron_chimed.workers import Bar, Workers, map_in_order

CHUNK_ROWS, CHUNK_CHARACTERS = 256, 1 << 20  # for one piece of work


class RowReader(Protocol):
    """Reader of the rows of a file; see `Reader` of the sources of dialogues and of ranked answers."""

    rows: Callable[[str | Path], Iterator[tuple[int, Any]]]


@dataclass(frozen=True)
class SourceFile:
    """File of a source. label: the source's name in reports and metrics; name: of the file, unique within the label."""

    label: str
    reader: str
    path: str
    name: str


def find_sources(
    specs: list[str], readers: Mapping[str, RowReader], detect: Callable[[str], str] | None = None
) -> list[SourceFile]:
    """Find the files of ``READER=PATH`` and ``LABEL:READER=PATH`` flags in their order.

    PATH may be a glob, or a folder that holds a data set in Parquet or Arrow (`table_files`).

    detect: names the reader of a file where the flag is ``LABEL=PATH`` and the label is no reader's name.
    Raises InputError: another form, an unknown reader, no such file, a file given twice under one label.
    """
    expected = f"expected NAME=PATH or LABEL:NAME=PATH with NAME one of {', '.join(readers)}"
    found: list[tuple[str, str, str]] = []
    for spec in specs:
        head, equals, pattern = spec.partition("=")
        label, colon, reader = head.rpartition(":")
        label = label if colon else head
        if not equals or not pattern or not re.fullmatch(r"[\w.\-]+", label):
            raise InputError(f"--source {spec}: {expected}")
        unknown = reader not in readers
        if unknown and (colon or not detect):
            raise InputError(f"--source {spec}: there is no reader {reader!r}; {expected}")
        paths = (Path(pattern).is_dir() and table_files(pattern)) or expand([pattern], f"--source {head}=")
        found += [(label, detect(path) if unknown else reader, path) for path in paths]
    return [SourceFile(label, reader, path, _name(label, path, found)) for label, reader, path in found]


def _name(label: str, path: str, found: list[tuple[str, str, str]]) -> str:
    """Name a file, or give its whole path where its label has another file of that name."""
    others = [other for other_label, _, other in found if other_label == label]
    if sum(Path(other).samefile(path) for other in others) > 1:
        raise InputError(f"{path}: given twice for the source {label!r}; give it once")
    return Path(path).name if sum(Path(other).name == Path(path).name for other in others) == 1 else path


def read_chunks(source: SourceFile, reader: RowReader) -> Iterator[list[tuple[int, Any]]]:
    """Read the rows of a file, (line, row or Fault), in chunks of bounded size.

    Raises InputError on a file at fault.
    """
    chunk, size = [], 0
    for line, row in reader.rows(source.path):
        chunk.append((line, row))
        size += sum(map(len, strings_of(row)))
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def prepare_rows[P](
    files: list[SourceFile],
    readers: Mapping[str, RowReader],
    prepare: Callable[[str, list[tuple[int, Any]]], list[P]],
    *,
    workers: Workers,
    progress: bool,
) -> Iterator[tuple[SourceFile, P]]:
    """Prepare each row, in the order of the files and their rows, under a bar.

    prepare(reader's name, [(line, row)]) runs in workers and gives one result for each row.
    """
    jobs = ((file, (file.reader, chunk)) for file in files for chunk in read_chunks(file, readers[file.reader]))
    with Bar(unit=" rows", disable=not progress, mininterval=0.5) as bar:
        for file, chunk in map_in_order(prepare, jobs, workers):
            bar.set_postfix_str(file.label, refresh=False)
            bar.update(len(chunk))
            yield from ((file, one) for one in chunk)
