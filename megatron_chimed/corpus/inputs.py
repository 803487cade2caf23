"""Cut the inputs of the corpus builder into batches of whole lines that workers read for themselves.

Several inputs are one long stream of lines, in the order given. A shard is a contiguous part of that stream: of each
plain file the lines that begin in its range of bytes, of a .gz file, which cannot be entered in the middle, all or
nothing.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megatron_chimed import jsonl
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import BOM, open_input


@dataclass(frozen=True)
class InputRange:
    """Range of bytes [start, end) of an input file; both fall on line starts once `cut_line_batches` has been through
    it."""

    path: str
    size: int
    start: int
    end: int


@dataclass(frozen=True)
class LineBatch:
    """Batch of whole lines of one input.

    source: number of the source; offset, length: where the bytes lie in a plain file; content: the bytes themselves
    where they come from a .gz; overlong: the last line was cut off; consumed: bytes of the input file, as on disk,
    that this batch accounts for (for the progress bar).
    """

    source: int
    path: str
    offset: int
    length: int
    consumed: int
    content: bytes | None = None
    overlong: bool = False

    def read(self) -> bytes:
        """Read the batch's bytes. Raises InputError if the file has become shorter meanwhile."""
        if self.content is not None:
            return self.content
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.length)
        if len(content) != self.length:
            raise InputError(f"{self.path}: became shorter while it was read; run again when nobody writes to it")
        return content


def select_shard(paths: list[str], num_shards: int = 1, shard_index: int = 0) -> list[InputRange]:
    """Select the ranges of one shard of the inputs (0 <= shard_index < num_shards), of nearly equal numbers of
    bytes."""
    sizes = [os.path.getsize(path) for path in paths]
    total, position, sources = sum(sizes), 0, []
    low, high = total * shard_index // num_shards, total * (shard_index + 1) // num_shards
    for path, size in zip(paths, sizes, strict=True):
        start, end = (min(max(bound - position, 0), size) for bound in (low, high))
        if path.endswith(".gz"):
            start, end = (0, size) if low <= position < high else (0, 0)
        if start < end:
            sources.append(InputRange(path, size, start, end))
        position += size
    return sources


def cut_line_batches(number: int, source: InputRange, batch_bytes: int, digest: "hashlib._Hash") -> Iterator[LineBatch]:
    """Cut batches of at least `batch_bytes` of text, except the last, of all lines that begin within the source.

    `digest` is fed with the same bytes as that of `digest_source`. Line starts alone decide where batches are cut,
    so that a second run makes the same batches. Raises InputError on a damaged .gz.
    """
    if source.path.endswith(".gz"):
        _feed(digest, source)
        yield from _cut_gzip(number, source, batch_bytes)
        return
    with open(source.path, "rb") as file:
        offset, end = _line_range(file, source)
        file.seek(offset)
        while offset < end:
            block, overlong, length = _read_lines(file, min(batch_bytes, end - offset), digest)
            if not length:
                return
            skip = len(BOM) if offset == 0 and block.startswith(BOM) else 0
            yield LineBatch(number, source.path, offset + skip, len(block) - skip, length, overlong=overlong)
            offset += length


def digest_source(source: InputRange) -> str:
    """Compute the hexadecimal SHA-256 of the lines that begin within the source; of a .gz, of the compressed file."""
    digest = hashlib.sha256()
    _feed(digest, source)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", source: InputRange) -> None:
    with open(source.path, "rb") as file:
        position, end = (0, source.size) if source.path.endswith(".gz") else _line_range(file, source)
        file.seek(position)
        while block := file.read(min(1 << 20, end - position)):
            digest.update(block)
            position += len(block)


def _line_range(file: IO[bytes], source: InputRange) -> tuple[int, int]:
    """Find the bytes [start, end) of the lines that begin within the source."""
    return _next_line_start(file, source.start, source.size), _next_line_start(file, source.end, source.size)


def _next_line_start(file: IO[bytes], position: int, size: int) -> int:
    """Find the first line start at or after a position."""
    if position in (0, size):
        return position
    file.seek(position - 1)
    while (piece := file.readline(jsonl.MAX_LINE_BYTES)) and not piece.endswith(b"\n"):
        pass
    return file.tell()


def _read_lines(file: IO[bytes], size: int, digest: "hashlib._Hash | None") -> tuple[bytes, bool, int]:
    """Read at least `size` bytes of whole lines; whether the last was cut off at its limit; how far the file was
    read."""
    block = file.read(size)
    length = len(block)
    if block and not block.endswith(b"\n"):
        rest = file.readline(jsonl.MAX_LINE_BYTES)
        block, length = block + rest, length + len(rest)
    last_start = block.rfind(b"\n", 0, -1) + 1
    fits = len(block) - last_start < jsonl.MAX_LINE_BYTES
    if not fits and (cut := block.rfind(b"\r", last_start, -2 if block.endswith(b"\r\n") else -1) + 1):
        file.seek(cut - length, os.SEEK_CUR)  # lines that end in CR alone
        block, length, fits = block[:cut], cut, True
    if digest:
        digest.update(block)
    if fits:
        return block, False, length
    ended = block.endswith(b"\n")
    while not ended and (piece := file.readline(1 << 20)):
        cut = piece.find(b"\r") + 1
        if cut and piece[cut:] not in (b"", b"\n"):  # the next line begins behind a CR alone
            file.seek(cut - len(piece), os.SEEK_CUR)
            piece = piece[:cut]
        length += len(piece)
        ended = piece.endswith((b"\n", b"\r"))
        if digest:
            digest.update(piece)
    return block, True, length


def _cut_gzip(number: int, source: InputRange, batch_bytes: int) -> Iterator[LineBatch]:
    """Cut batches of a .gz file, with their content."""
    with open_input(source.path) as file:
        raw, before, first = file.fileobj, 0, True
        while True:
            block, overlong, length = _read_lines(file, batch_bytes, None)
            if not length:
                return
            if first and block.startswith(BOM):
                block = block[len(BOM) :]
            after = min(raw.tell(), source.size)
            yield LineBatch(number, source.path, 0, len(block), after - before, content=block, overlong=overlong)
            before, first = after, False


def count_lines_before(source: InputRange) -> int:
    """Count the lines of a file that begin before a source's first line: what to add to get line numbers of the whole
    file."""
    lines = 0
    with open(source.path, "rb") as file:
        left = _next_line_start(file, source.start, source.size)
        file.seek(0)
        while left and (block := file.read(min(left, 1 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines


def identity(sources: list[InputRange]) -> list[list]:
    """List what shows cheaply whether inputs are still the same: path, range, size and time of change of each."""
    return [
        [os.path.abspath(source.path), source.start, source.end, source.size, Path(source.path).stat().st_mtime_ns]
        for source in sources
    ]
