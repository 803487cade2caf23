"""Packed rows on disk: written once, memory-mapped by every training.

A row is a number of segments end to end, at most `sequence_length` tokens; a segment is one training example and keeps
all its tokens. The folder holds ``manifest.json`` and, as .npy files:

    tokens           [T] uint16 or uint32   the tokens of all segments, in the order of the rows
    loss_mask        [T] uint8              1 for a token to be learnt
    segment_offsets  [K+1] int64            segment k is tokens[segment_offsets[k] : segment_offsets[k+1]]
    row_offsets      [R+1] int64            row r is the segments row_offsets[r] to row_offsets[r+1], end excluded
    segment_NAME     [K]                    whatever else is known of a segment: its source, its dialogue, ...
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json, sha256_file
from megatron_chimed.packing.bin_packing import Packing

MANIFEST, FORMAT = "manifest.json", "packed rows 1"
TOKENS_AT_ONCE = 1 << 22  # gathered in memory at a time


def is_packed(folder: Path) -> bool:
    """Whether a folder was written as packed rows, whole or not."""
    try:
        content = read_json(folder / MANIFEST)
    except InputError:
        return False
    return isinstance(content, dict) and str(content.get("format", "")).startswith("packed rows")


def write_arrays(
    folder: Path,
    packing: Packing,
    lengths: np.ndarray,
    per_token: Mapping[str, np.ndarray],
    per_segment: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Write the arrays of a packing into an existing folder; returns {"sha256", "bytes"} by file, for the manifest.

    packing: of K segments; lengths: [K] their tokens; per_token: tokens and loss_mask, [T] each, segments in their
    own order (may be memory-mapped: they are read in pieces); per_segment: further arrays [K] by NAME.
    """
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ordered = lengths[packing.order]
    offsets = np.concatenate([[0], np.cumsum(ordered, dtype=np.int64)])
    small = {"segment_offsets": offsets, "row_offsets": packing.row_offsets}
    small |= {f"segment_{name}": values[packing.order] for name, values in per_segment.items()}
    for name, values in small.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    for name, values in per_token.items():
        target = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, (int(offsets[-1]),))
        for first, last in _pieces(offsets):
            positions = starts[packing.order[first:last]] - offsets[first:last]
            places = np.repeat(positions, ordered[first:last]) + np.arange(offsets[first], offsets[last])
            target[offsets[first] : offsets[last]] = values[places]
        target.flush()
    paths = sorted(folder.glob("*.npy"))
    for path in paths:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    return {
        "sha256": {path.name: sha256_file(path) for path in paths},
        "bytes": {path.name: path.stat().st_size for path in paths},
    }


def _pieces(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut segments into ranges (first, last) of about TOKENS_AT_ONCE tokens; offsets: [segments + 1]."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + TOKENS_AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


class PackedRows:
    """The rows of a folder.

    manifest: its content; sequence_length; pad_id: the id to fill a row up with; sources: names, by the numbers in
    segment_source; arrays: those of the module's docstring, by name, memory-mapped. Can be pickled: it is opened again.
    """

    def __init__(self, folder: str | Path):
        """Raises InputError in one line for a folder that is missing, damaged or of another kind.

        Checked are sizes, types and that all offsets lie in order; hashes are checked by `verify`.
        """
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.sequence_length: int = self.manifest["sequence_length"]
        self.pad_id: int = self.manifest["pad_id"]
        self.sources: list[str] = self.manifest["sources"]
        names = [name.removesuffix(".npy") for name in self.manifest["bytes"]]
        self.arrays = {name: _open_array(self.folder / f"{name}.npy") for name in names}
        self._check()
        self.tokens, self.loss_mask = self.arrays["tokens"], self.arrays["loss_mask"]
        self.segment_offsets, self.row_offsets = self.arrays["segment_offsets"], self.arrays["row_offsets"]

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def __reduce__(self):
        return PackedRows, (str(self.folder),)

    def segments(self, row: int) -> range:
        """Return the numbers of a row's segments. Raises IndexError for a row that is not there."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return range(int(self.row_offsets[row]), int(self.row_offsets[row + 1]))

    def verify(self) -> None:
        """Read all files and compare their hashes with the manifest's. Raises InputError at the first difference."""
        for name, digest in self.manifest["sha256"].items():
            if sha256_file(self.folder / name) != digest:
                raise InputError(f"{self.folder / name}: is not what the manifest's hash states; pack again")

    def _check(self) -> None:
        """Raise InputError if the arrays do not belong together."""
        arrays = self.arrays
        missing = {"tokens", "loss_mask", "segment_offsets", "row_offsets"} - set(arrays)
        if missing:
            raise InputError(f"{self.folder}: holds no {min(missing)}.npy; pack again")
        num_segments = len(arrays["segment_offsets"]) - 1
        sound = len(arrays["tokens"]) == len(arrays["loss_mask"])
        for offsets, total in (("segment_offsets", len(arrays["tokens"])), ("row_offsets", num_segments)):
            values = arrays[offsets]
            sound &= values.dtype == np.int64 and len(values) > 1 and values[0] == 0 and values[-1] == total
            sound = sound and bool((values[1:] > values[:-1]).all())
        sound = sound and len(arrays["row_offsets"]) - 1 == self.manifest["rows"]
        for name in arrays:
            wanted = num_segments + (name == "segment_offsets")
            sound = sound and (not name.startswith("segment_") or len(arrays[name]) == wanted)
        if not sound:
            raise InputError(f"{self.folder}: its offsets do not fit its tokens; pack again")
        if np.diff(arrays["segment_offsets"][arrays["row_offsets"]]).max() > self.sequence_length:
            raise InputError(f"{self.folder}: a row has more than {self.sequence_length} tokens; pack again")
        source = arrays.get("segment_source")
        if source is not None and not 0 <= source.min() <= source.max() < len(self.sources):
            raise InputError(f"{self.folder}: a segment's source is none of the manifest's; pack again")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a packed folder whose files all have the sizes that it states. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make it with chimed pack sft or chimed pack rewards")
    path = folder / MANIFEST
    content = read_json(path)
    types = {"rows": int, "sequence_length": int, "pad_id": int, "sources": list, "bytes": dict, "sha256": dict}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not the manifest of packed rows; expected format {FORMAT!r}")
    for key, expected in types.items():
        if not isinstance(content.get(key), expected):
            raise InputError(f"{path}: {key} is not there or no {expected.__name__}; pack again")
    for name, size in content["bytes"].items():
        file = folder / Path(name).name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise InputError(f"{file}: {state}; the manifest states {size}: pack again")
    return content


def _open_array(path: Path) -> np.ndarray:
    """Open a .npy file of one dimension, memory-mapped, as a plain array: slices of a memmap are slow.

    Raises InputError.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{path}: not a .npy file ({' '.join(str(error).split())[:80]}); pack again") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{path}: expected one row of whole numbers; pack again")
    return np.asarray(array)


def row_arrays(packed: PackedRows, row: int) -> dict[str, np.ndarray]:
    """Make a row as a model takes it, all of length S = sequence_length.

    tokens [S] int64; labels [S] int64: the next token of the same segment; loss_mask [S] float32: 1 where that label is
    to be learnt, so 0 on the last token of a segment and on padding; position_ids [S] int64: from 0 in each segment,
    and in the padding, which is a tail of its own; source [S] int32: number of the segment's source, -1 in padding.
    A segment of 3 tokens [5, 6, 7] with mask [0, 1, 1], S = 4, pad_id 0: tokens [5, 6, 7, 0], labels [6, 7, 0, 0],
    loss_mask [1, 1, 0, 0], position_ids [0, 1, 2, 0].
    """
    segments, length = packed.segments(row), packed.sequence_length
    bounds = packed.segment_offsets[segments.start : segments.stop + 1]
    start, filled = int(bounds[0]), int(bounds[-1] - bounds[0])
    sizes = np.diff(bounds)
    last = bounds[1:] - start - 1  # the last token of each segment
    arrays = {
        "tokens": np.full(length, packed.pad_id, np.int64),
        "labels": np.full(length, packed.pad_id, np.int64),
        "loss_mask": np.zeros(length, np.float32),
        "position_ids": np.concatenate([np.arange(size) for size in [*sizes, length - filled]]),
        "source": np.full(length, -1, np.int32),
    }
    arrays["tokens"][:filled] = packed.tokens[start : start + filled]
    arrays["labels"][: filled - 1] = arrays["tokens"][1:filled]
    arrays["labels"][last] = packed.pad_id
    arrays["loss_mask"][: filled - 1] = packed.loss_mask[start + 1 : start + filled]
    arrays["loss_mask"][last] = 0
    if "segment_source" in packed.arrays:
        arrays["source"][:filled] = np.repeat(packed.arrays["segment_source"][segments.start : segments.stop], sizes)
    return arrays
