"""The log-probabilities that a reference model gives to packed answers, beside the rows, by the model's hash.

``reference.npy`` has one float64 for each segment, in nats; ``reference.json`` says of which rows and which model. They
are computed in pieces: what a killed run has computed is in ``reference.partial.npy``, NaN where it has not.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import manifest, read_json, sha256_file, write_json
from megatron_chimed.packing.packed_rows import MANIFEST, PackedRows

VALUES, NOTE, PARTIAL = "reference.npy", "reference.json", "reference.partial"
ROWS_AT_ONCE = 64  # computed between two writes

Pair = tuple[list[int], list[int]]
"""Prompt and answer, as ids."""


class Reference(NamedTuple):
    """log_p: of each segment's answer, [K] float64; model: hash of the model's weights."""

    log_p: np.ndarray
    model: str


def read_reference(packed: PackedRows) -> Reference:
    """What was computed for these rows. Raises InputError where nothing was, or it is of others, or damaged."""
    path = packed.folder / NOTE
    command = f"chimed reference --packed {packed.folder} --model megatron:CHECKPOINT"
    if not path.is_file():
        raise InputError(f"{packed.folder}: has no {NOTE}; compute it with {command}")
    note, values = read_json(path), packed.folder / VALUES
    parents = note.get("parents") if isinstance(note, dict) else None
    if not isinstance(parents, dict) or not isinstance(parents.get("model"), str):
        raise InputError(f"{path}: is no manifest of a reference; compute it again with {command}")
    if parents.get("packed") != sha256_file(packed.folder / MANIFEST):
        raise InputError(f"{path}: is of other rows; compute it again with {command}")
    if not values.is_file() or note.get("bytes") != {VALUES: values.stat().st_size}:
        raise InputError(f"{values}: is not whole; compute it again with {command}")
    return Reference(np.load(values, mmap_mode="r", allow_pickle=False), parents["model"])


def compute_reference(
    packed: PackedRows, model: str, facts: dict, log_p: Callable[[list[Pair]], list[float]], progress: Callable
) -> bool:
    """Compute the reference of packed rows, or go on with it; False where it is there already.

    model: hash of the weights; facts: for the note; log_p: of answers, in nats; progress: called with the segments that
    are done. Raises InputError for rows that are no ranked answers.
    """
    if "segment_answer" not in packed.arrays:
        raise InputError(f"{packed.folder}: holds no ranked answers; pack them with chimed pack rewards")
    parents = {"packed": sha256_file(packed.folder / MANIFEST), "model": model}
    try:
        if read_reference(packed).model == model:
            return False
    except InputError:  # none, or of others
        pass
    values = _begun(packed, parents)
    for start in range(0, len(packed), ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, len(packed)))
        here = slice(packed.segments(rows[0]).start, packed.segments(rows[-1]).stop)
        if np.isnan(values[here]).any():
            values[here] = log_p([pair for row in rows for pair in pairs_of(packed, row)])
            values.flush()
        progress(here.stop - here.start)
    partial = packed.folder / f"{PARTIAL}.npy"
    (packed.folder / NOTE).unlink(missing_ok=True)
    partial.replace(packed.folder / VALUES)
    sizes = {VALUES: (packed.folder / VALUES).stat().st_size}
    digest = {VALUES: sha256_file(packed.folder / VALUES)}
    content = manifest(
        made_by="chimed reference", rows=len(values), sha256=digest, parents=parents, dropped={}, bytes=sizes, **facts
    )
    write_json(packed.folder / NOTE, content)
    (packed.folder / f"{PARTIAL}.json").unlink()
    return True


def _begun(packed: PackedRows, parents: dict[str, str]) -> np.memmap:
    """The values of a run that was killed, or new ones, all NaN."""
    note, path = packed.folder / f"{PARTIAL}.json", packed.folder / f"{PARTIAL}.npy"
    shape = (len(packed.segment_offsets) - 1,)
    if note.is_file() and path.is_file() and read_json(note) == parents:
        values = np.load(path, mmap_mode="r+", allow_pickle=False)
        if values.shape == shape and values.dtype == np.float64:
            return values
    note.unlink(missing_ok=True)
    values = np.lib.format.open_memmap(path, "w+", np.float64, shape)
    values[:] = np.nan
    values.flush()
    write_json(note, parents)
    return values


def pairs_of(packed: PackedRows, row: int) -> Iterator[Pair]:
    """(prompt, answer) of each segment of a row; answers that share a prompt have it whole."""
    prompts: dict[int, list[int]] = {}
    for segment in packed.segments(row):
        start, end = (int(bound) for bound in packed.segment_offsets[segment : segment + 2])
        tokens, size = packed.tokens[start:end].tolist(), int(packed.arrays["segment_answer"][segment])
        prompt = tokens[:-size]
        if packed.manifest.get("shared_prompt"):
            prompt = prompts.setdefault(int(packed.arrays["segment_group"][segment]), prompt)
        yield prompt, tokens[-size:]
