"""Megatron's indexed dataset on disk: a .bin of token ids and an .idx that says where each sequence lies.

The .idx holds, little-endian: the magic number, version 1 (uint64), a code of the ids' type (uint8), the number of
sequences and of document boundaries (uint64 each), then sequence lengths in tokens (int32), sequence starts in bytes
(int64) and document boundaries in sequences (int64, from 0 to the number of sequences).
Source: megatron/core/datasets/indexed_dataset.py of megatron-core 0.19.2. It is written anew here because importing
it costs seconds (it imports torch) in a tool that needs neither.
"""

import struct
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from megatron_chimed.errors import InputError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
# Types that can hold token ids, by Megatron's codes; it also lists float and signed byte types.
DTYPES = {1: np.uint8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


class Index(NamedTuple):
    """A checked .idx file. lengths [sequences] in tokens; boundaries [documents + 1] in sequences."""

    dtype: np.dtype
    lengths: np.ndarray
    boundaries: np.ndarray


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type that Megatron chooses for the ids of a vocabulary (`DType.optimal_dtype`)."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def starts_of(lengths: np.ndarray, itemsize: int) -> np.ndarray:
    """Compute the byte at which each sequence starts: int64 [sequences]."""
    starts = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=starts[1:])
    return starts * itemsize


def write_index(file: IO[bytes], dtype: np.dtype, lengths: np.ndarray, boundaries: np.ndarray) -> None:
    """Write an .idx. lengths [sequences] in tokens; boundaries [documents + 1] in sequences, from 0."""
    file.write(HEADER.pack(MAGIC, VERSION, CODES[np.dtype(dtype)], len(lengths), len(boundaries)))
    file.write(lengths.astype("<i4").tobytes())
    file.write(starts_of(lengths, np.dtype(dtype).itemsize).astype("<i8").tobytes())
    file.write(boundaries.astype("<i8").tobytes())


def read_index(path: str | Path) -> Index:
    """Read an .idx and check all that it says about itself.

    Raises InputError: wrong magic number, version, type code or size; a negative length; starts that do not follow
    from the lengths; document boundaries that do not run from 0 to the number of sequences without going back.
    """
    content = np.fromfile(path, dtype=np.uint8)
    if content.nbytes < HEADER.size:
        raise InputError(f"{path}: {content.nbytes} bytes, shorter than the header of an index; build the corpus again")
    magic, version, code, sequences, boundary_count = HEADER.unpack(content[: HEADER.size].tobytes())
    if magic != MAGIC or version != VERSION or code not in DTYPES:
        raise InputError(
            f"{path}: not a Megatron index (magic number {magic!r}, version {version}, type {code}); "
            "build the corpus again"
        )
    expected = HEADER.size + 12 * sequences + 8 * boundary_count
    if content.nbytes != expected:
        raise InputError(f"{path}: {content.nbytes} bytes, but its header asks for {expected}; build the corpus again")
    first, second = HEADER.size + 4 * sequences, HEADER.size + 12 * sequences
    index = Index(
        np.dtype(DTYPES[code]),
        np.frombuffer(content[HEADER.size : first].tobytes(), dtype="<i4"),
        np.frombuffer(content[second:].tobytes(), dtype="<i8"),
    )
    _check_index(path, index, np.frombuffer(content[first:second].tobytes(), dtype="<i8"))
    return index


def _check_index(path: str | Path, index: Index, starts: np.ndarray) -> None:
    """Raise InputError unless lengths, starts (bytes, [sequences]) and boundaries agree with one another."""
    negative = np.flatnonzero(index.lengths < 0)
    if negative.size:
        raise InputError(f"{path}: sequence {negative[0]} has a negative length; build the corpus again")
    wrong = np.flatnonzero(starts != starts_of(index.lengths, index.dtype.itemsize))
    if wrong.size:
        raise InputError(f"{path}: sequence {wrong[0]} does not start where the one before it ends; build it again")
    boundaries = index.boundaries
    if not boundaries.size or boundaries[0] != 0 or boundaries[-1] != len(index.lengths):
        raise InputError(f"{path}: document boundaries do not run from 0 to {len(index.lengths)}; build it again")
    backwards = np.flatnonzero(np.diff(boundaries) < 0)
    if backwards.size:
        raise InputError(f"{path}: document {backwards[0]} ends before it starts; build the corpus again")
