"""Pack records into rows: JSON lines in, a folder for `PackedRows` out.

Worker processes render batches of lines and make them fit (dialogue_worker, ranking_worker); their tokens are appended
to two files in the order of the input. Only what is known of each segment stays in memory: its length, its source, ...
Then the units, segments that belong together, are packed by their lengths and the tokens gathered row by row.
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_folder, manifest, open_input, sha256_json, write_json
from megatron_chimed.packing.bin_packing import Packing, lower_bound, pack
from megatron_chimed.packing.chunks import RecordBatch, SegmentChunk, digest_input, read_record_batches
from megatron_chimed.packing.packed_rows import FORMAT, MANIFEST, is_packed, read_manifest, write_arrays
from megatron_chimed.steps import find_up_to_date
from megatron_chimed.text.bulk import alone_because, guarded
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.workers import Bar, Workers, check_workers, map_in_order


@dataclass(frozen=True)
class Kind:
    """One kind of packed rows. made_by: the command; records: what its lines hold, in plural; settings: all that
    decides the bytes beside the inputs and what rows of every kind have; maker: of parts, sent to worker processes."""

    made_by: str
    records: str
    settings: dict[str, Any]
    maker: Callable[[RecordBatch], SegmentChunk]


@dataclass(frozen=True)
class RowOptions:
    """Options of packed rows of every kind.

    sequence_length: tokens of a row; seed: of the order of units of one length; one_unit_per_row: pack nothing
    together; workers: see `Workers`; progress: show a bar on stderr (both change no byte).
    Raises InputError.
    """

    sequence_length: int = 4096
    seed: int = 1234
    one_unit_per_row: bool = False
    workers: Workers = 0
    progress: bool = True

    def __post_init__(self):
        check_workers(self.workers)
        if self.sequence_length < 2 or self.seed < 0:
            raise InputError("--sequence-length must be 2 or more, --seed 0 or more")


def pack_records(
    inputs: list[str], output: Path, renderer: Renderer, kind: Kind, options: RowOptions, tokenizer_path: str = ""
) -> dict[str, Any]:
    """Pack the records of JSON lines into the folder `output`, or find that it is there already. Returns its manifest.

    inputs: .gz too. A packed folder made of something else is replaced; any other folder that holds something is
    refused. tokenizer_path: for the manifest. Raises InputError: a bad row (``file:line: reason``), nothing to pack,
    another run on the same output.
    """
    for path in inputs:
        with open_input(path):  # a missing file is found before anything is made
            pass
    settings = {"format": FORMAT, "sequence_length": options.sequence_length, **kind.settings}
    settings |= {"vocab_size": renderer.tokenizer.vocab_size, "seed": options.seed, "pad_id": _pad_id(renderer)}
    parents = {
        "settings": sha256_json(settings),
        "template": renderer.template.fingerprint,
        "tokenizer": renderer.tokenizer.fingerprint,
    }
    present = find_up_to_date(
        output / MANIFEST,
        parents,
        late={"inputs": lambda: _inputs_hash(map(digest_input, inputs))},
        accept=lambda content: content == read_manifest(output),
    )
    if present:
        print(f"{output}: up to date", file=sys.stderr)
        return present

    def build(difference: str | None) -> dict[str, Any]:
        tokenizer = {"path": tokenizer_path, "fingerprint": renderer.tokenizer.fingerprint} | alone_because(difference)
        account = settings | {"template": renderer.template.to_row(), "tokenizer": tokenizer, "inputs": inputs}
        return _pack(inputs, output, kind, options, parents, account)

    return guarded(build)


def _pack(
    inputs: list[str], output: Path, kind: Kind, options: RowOptions, parents: dict[str, str], account: dict[str, Any]
) -> dict[str, Any]:
    """`pack_records` once it is known that something is to be done. account: what the manifest says besides."""
    with atomic_folder(output, may_replace=is_packed) as folder:
        segments, digests = _Segments(folder), [hashlib.sha256() for _ in inputs]
        with segments:
            _render_segments(inputs, digests, segments, kind, options)
        if not segments.lengths:
            raise InputError(
                f"{inputs[0]}: no {kind.records[:-1]} that fits into {options.sequence_length} tokens; nothing to pack"
            )
        content = manifest(
            made_by=kind.made_by,
            parents={**parents, "inputs": _inputs_hash(digest.hexdigest() for digest in digests)},
            dropped={reason: count for (what, reason), count in segments.counts.items() if what == "reason"},
            **account,
            **_write_rows(folder, segments, kind, options),
        )
        write_json(folder / MANIFEST, content)
    return content


def _render_segments(
    inputs: list[str], digests: list["hashlib._Hash"], segments: "_Segments", kind: Kind, options: RowOptions
) -> None:
    """Render all inputs in worker processes, and append what they make in the order of the input."""
    with Bar(total=_size(inputs), unit="B", unit_scale=True, disable=not options.progress) as bar:
        jobs = ((None, (batch,)) for batch in read_record_batches(inputs, digests))
        for _, chunk in map_in_order(kind.maker, jobs, options.workers):
            segments.append(chunk)
            bar.update(chunk.num_bytes)


def _pad_id(renderer: Renderer) -> int:
    """Choose the id that fills up rows: padding is known by its place, so that EOS serves where there is no pad."""
    tokenizer = renderer.tokenizer
    return next(one for one in (tokenizer.pad_id, tokenizer.eos_id, renderer.end_id) if one is not None)


def _inputs_hash(digests: Iterable[str]) -> str:
    """Hash all inputs, in their order."""
    return sha256_json(list(digests))


def _size(inputs: list[str]) -> int | None:
    """Count bytes of text in the inputs; None where a .gz does not tell."""
    return None if any(path.endswith(".gz") for path in inputs) else sum(map(os.path.getsize, inputs))


class _Segments:
    """Segments of all parts, end to end: tokens and masks in two files, the rest in memory. Closed by `with`."""

    def __init__(self, folder: Path):
        self.paths = {name: folder / f"{name}.raw" for name in ("tokens", "loss_mask")}
        self.files = {name: open(path, "wb") for name, path in self.paths.items()}  # noqa: SIM115 (see __exit__)
        self.dtypes: dict[str, np.dtype] = {}
        self.lengths: list[np.ndarray] = []
        self.unit_sizes: list[np.ndarray] = []
        self.per_segment: dict[str, list[np.ndarray]] = {}
        self.source_numbers: dict[str, int] = {}
        self.counts: Counter = Counter()
        self.num_records = 0

    def append(self, part: SegmentChunk) -> None:
        """Add a part. Its sources get numbers in the order in which they first come."""
        numbers = [self.source_numbers.setdefault(name, len(self.source_numbers)) for name in part.source_names]
        if len(part.lengths):
            for name, values in (("tokens", part.tokens), ("loss_mask", part.loss_mask)):
                self.dtypes[name] = values.dtype
                self.files[name].write(values.tobytes())
            self.lengths.append(part.lengths)
            self.unit_sizes.append(part.unit_sizes)
            for name, values in part.per_segment.items():
                values = np.array(numbers, np.int32)[values] if name == "source" else values
                self.per_segment.setdefault(name, []).append(values)
        self.counts.update(part.counts)
        self.num_records += part.num_records

    def __enter__(self) -> "_Segments":
        return self

    def __exit__(self, *error) -> None:
        for file in self.files.values():
            file.close()


def _write_rows(folder: Path, segments: _Segments, kind: Kind, options: RowOptions) -> dict[str, Any]:
    """Pack the segments and write the arrays; returns their part of the manifest."""
    lengths, unit_sizes = np.concatenate(segments.lengths), np.concatenate(segments.unit_sizes)
    packing, bound = pack_units(lengths, unit_sizes, options)
    per_token = {name: np.memmap(path, segments.dtypes[name], "r") for name, path in segments.paths.items()}
    per_segment = {name: np.concatenate(values) for name, values in segments.per_segment.items()}
    files = write_arrays(folder, packing, lengths, per_token, per_segment)
    del per_token
    for path in segments.paths.values():
        path.unlink()
    num_rows = len(packing.row_offsets) - 1
    report = {kind.records: segments.num_records, "segments": len(lengths), "rows": num_rows, "lower_bound": bound}
    for what in ("in", "shortened", "cut", "dropped", "kept"):
        report[what] = {unit: segments.counts[what, unit] for unit in ("instances", "tokens", "trained")}
    if per_turn := segments.counts["per_turn", "dialogues"]:
        report["per_turn"] = {"dialogues": per_turn}
    report["padding"] = num_rows * options.sequence_length - report["kept"]["tokens"]
    return {"rows": num_rows, "sources": list(segments.source_numbers), "report": report, **files}


def pack_units(lengths: np.ndarray, unit_sizes: np.ndarray, options: RowOptions) -> tuple[Packing, int]:
    """Pack the segments so that no unit is divided; (packing, the least number of rows that any packing has).

    lengths: [K] int32 tokens of each segment; unit_sizes: [U] int64 segments of each unit, in order, K in all.
    """
    starts = np.concatenate([[0], np.cumsum(unit_sizes)])
    units = np.add.reduceat(lengths, starts[:-1], dtype=np.int64)
    if options.one_unit_per_row:
        packed, bound = Packing(np.arange(len(units)), np.arange(len(units) + 1)), len(units)
    else:
        packed, bound = pack(units, options.sequence_length, options.seed), lower_bound(units, options.sequence_length)
    sizes = unit_sizes[packed.order]
    ends = np.concatenate([[0], np.cumsum(sizes)])  # places of the units' segments in the new order
    order = np.repeat(starts[packed.order] - ends[:-1], sizes) + np.arange(ends[-1])
    return Packing(order, ends[packed.row_offsets]), bound


def format_pack_report(content: dict[str, Any], targets: str) -> str:
    """Format the report of a manifest as lines for people. targets: what is counted as "trained"."""
    report, slots = content["report"], content["rows"] * content["sequence_length"]
    kept = report["kept"]
    lines = [
        f"rows           {report['rows']:,} of {content['sequence_length']:,} tokens; "
        f"no packing has less than {report['lower_bound']:,}",
        f"fill           {kept['tokens'] / slots:.3%}: {kept['tokens']:,} tokens in {report['segments']:,} segments, "
        f"{report['padding']:,} padding",
        f"kept           {kept['trained']:,} {targets}",
    ]
    for what, meaning in (("shortened", "oldest turns left out"), ("cut", "questions cut"), ("dropped", "dropped")):
        lost = report[what]
        lines.append(
            f"{what:14} {lost['instances']:,} instances, {lost['tokens']:,} tokens, "
            f"{lost['trained']:,} {targets} ({meaning})"
        )
    if per_turn := report.get("per_turn"):
        lines.append(
            f"per turn       {per_turn['dialogues']:,} dialogues: in this template no sequence holds all their answers "
            "as they are learnt"
        )
    return "\n".join(lines + [f"  {count:,} x {reason}" for reason, count in content["dropped"].items()])
