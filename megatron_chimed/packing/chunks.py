"""Batches of lines with records, and the tokens that they become: shared by the workers of dialogues and rankings."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from megatron_chimed.jsonl import located, parse_line, read_lines
from megatron_chimed.text.exchange import Rendered

BATCH_BYTES = 1 << 20


class RecordBatch(NamedTuple):
    """Lines of an input file; number: of the first one, from 1; first_record: how many records come before it."""

    path: str
    number: int
    lines: list[bytes]
    first_record: int

    @property
    def located(self) -> list[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers."""
        return [(self.number + place, line) for place, line in enumerate(self.lines) if line.strip()]


class SegmentChunk(NamedTuple):
    """Segments of a batch: T tokens in K segments, from D records.

    tokens [T] of `token_type`; loss_mask [T] uint8; lengths [K] int32; unit_sizes [U] int64: segments of each unit,
    which end up in one row; per_segment: further arrays [K] by name, of which "source" numbers source_names;
    source_names: those of the batch, as they come; counts: see `examples.fit_example`; num_records: D; num_bytes: of
    the lines.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    unit_sizes: np.ndarray
    per_segment: dict[str, np.ndarray]
    source_names: list[str]
    counts: Counter
    num_records: int
    num_bytes: int


def token_type(vocab_size: int) -> type[np.unsignedinteger]:
    """Choose the smallest type that holds all ids."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def gather(rendered: Sequence[Rendered], dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concatenate K segments: (tokens [T] of `dtype`, loss_mask [T] uint8, lengths [K] int32)."""
    return (
        np.concatenate([np.zeros(0, np.int32), *(one.tokens for one in rendered)]).astype(dtype),
        np.concatenate([np.zeros(0, np.uint8), *(one.loss_mask for one in rendered)]),
        np.array([len(one.tokens) for one in rendered], np.int32),
    )


def parse(record: type, path: str, number: int, line: bytes):
    """Parse a record of one line. Raises InputError as ``file:line: reason``."""
    with located(path, number):
        return record.from_row(parse_line(line))


def read_record_batches(inputs: list[str], digests: list["hashlib._Hash"]) -> Iterator[RecordBatch]:
    """Read batches of some BATCH_BYTES of whole lines. digests: one for each input, fed as in `digest_input`.

    Raises InputError if there is no such file, or a .gz is damaged.
    """
    records = 0
    for path, digest in zip(inputs, digests, strict=True):
        first, lines, size = 1, [], 0
        for number, line in read_lines(path):
            digest.update(line)
            lines.append(line)
            size += len(line)
            if size >= BATCH_BYTES:
                yield RecordBatch(path, first, lines, records)
                records += sum(1 for one in lines if one.strip())
                first, lines, size = number + 1, [], 0
        if lines:
            yield RecordBatch(path, first, lines, records)
            records += sum(1 for one in lines if one.strip())


def digest_input(path: str) -> str:
    """Compute the hexadecimal SHA-256 of an input's content, for a .gz of what is in it. Raises InputError."""
    digest = hashlib.sha256()
    for _, line in read_lines(path):
        digest.update(line)
    return digest.hexdigest()
