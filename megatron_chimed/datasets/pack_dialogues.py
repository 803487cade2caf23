"""Dialogues to packed rows: JSON lines of `Dialogue` in, a folder for `PackedRows` out.

Worker processes render batches of lines and make them fit (dialogue_parts); their tokens are appended to two files in
the order of the input. Only the length, the dialogue and the source of each segment stay in memory. Then the lengths
are packed and the tokens gathered row by row.
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.datasets.dialogue_parts import Part, PartMaker, cut_into_batches, digest_input
from megatron_chimed.datasets.instances import MODES
from megatron_chimed.datasets.packed import FORMAT, MANIFEST, find_finished, is_packed, write_arrays
from megatron_chimed.datasets.packing import lower_bound, pack
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_folder, manifest, open_input, sha256_json, write_json
from megatron_chimed.template import Renderer
from megatron_chimed.workers import Bar, map_in_order

MADE_BY = "tools/pack_sft.py"


@dataclass(frozen=True)
class PackOptions:
    """sequence_length: tokens of a row; mode: one of MODES; seed: of the order of samples of one length.

    workers: processes beside this one, 0 for none; progress: show a bar on stderr. These two change no byte.
    """

    sequence_length: int = 4096
    mode: str = "whole"
    seed: int = 1234
    workers: int = 0
    progress: bool = True

    def __post_init__(self):
        if self.sequence_length < 2 or self.workers < 0 or self.seed < 0:
            raise InputError("--sequence-length must be 2 or more, --workers and --seed 0 or more")
        if self.mode not in MODES:
            raise InputError(f"--mode {self.mode}: expected one of {', '.join(MODES)}")


def pack_dialogues(
    inputs: list[str], output: Path, renderer: Renderer, options: PackOptions, tokenizer_path: str = ""
) -> dict[str, Any]:
    """Pack dialogues into the folder `output`, or find that it is there already. Returns its manifest.

    inputs: JSON lines of `Dialogue`, .gz too. A packed folder made of something else is replaced; any other folder that
    holds something is refused. tokenizer_path: for the manifest. Raises InputError: a bad row (``file:line: reason``),
    nothing to pack, another run on the same output.
    """
    for path in inputs:
        with open_input(path):  # a missing file is found before anything is made
            pass
    settings = {"format": FORMAT, "sequence_length": options.sequence_length, "mode": options.mode}
    settings |= {"vocab_size": renderer.tokenizer.vocab_size, "seed": options.seed, "pad_id": _pad_id(renderer)}
    parents = {
        "settings": sha256_json(settings),
        "template": renderer.template.fingerprint,
        "tokenizer": renderer.tokenizer.fingerprint,
    }
    if present := find_finished(output, parents, lambda: _inputs_hash(map(digest_input, inputs))):
        print(f"{output}: up to date", file=sys.stderr)
        return present
    with atomic_folder(output, may_replace=is_packed) as folder:
        segments = _Segments(folder)
        digests = [hashlib.sha256() for _ in inputs]
        maker = PartMaker(renderer, options.sequence_length, options.mode)
        with segments, Bar(total=_size(inputs), unit="B", unit_scale=True, disable=not options.progress) as bar:
            jobs = ((None, (batch,)) for batch in cut_into_batches(inputs, digests))
            for _, part in map_in_order(maker, jobs, options.workers):
                segments.append(part)
                bar.update(part.num_bytes)
        if not segments.lengths:
            raise InputError(
                f"{inputs[0]}: no dialogue that fits into {options.sequence_length} tokens; nothing to pack"
            )
        content = manifest(
            made_by=MADE_BY,
            parents={**parents, "inputs": _inputs_hash(digest.hexdigest() for digest in digests)},
            dropped={reason: count for (kind, reason), count in segments.counts.items() if kind == "reason"},
            **settings,
            **_write_rows(folder, segments, options),
            template=asdict(renderer.template),
            tokenizer={"path": tokenizer_path, "fingerprint": renderer.tokenizer.fingerprint},
            inputs=inputs,
        )
        write_json(folder / MANIFEST, content)
    return content


def _pad_id(renderer: Renderer) -> int:
    """What rows are filled up with: padding is known by its place, so that EOS serves where there is no pad."""
    pad_id = renderer.tokenizer.pad_id
    return renderer.tokenizer.eos_id if pad_id is None else pad_id


def _inputs_hash(digests: Iterable[str]) -> str:
    """One hash for all inputs, in their order."""
    return sha256_json(list(digests))


def _size(inputs: list[str]) -> int | None:
    """Bytes of text in the inputs; None where a .gz does not tell."""
    return None if any(path.endswith(".gz") for path in inputs) else sum(map(os.path.getsize, inputs))


class _Segments:
    """What the parts hold, end to end: tokens and masks in two files, the rest in memory. Closed by `with`."""

    def __init__(self, folder: Path):
        self.paths = {name: folder / f"{name}.raw" for name in ("tokens", "loss_mask")}
        self.files = {name: open(path, "wb") for name, path in self.paths.items()}  # noqa: SIM115 (see __exit__)
        self.dtypes: dict[str, np.dtype] = {}
        self.lengths: list[np.ndarray] = []
        self.dialogues: list[np.ndarray] = []
        self.sources: list[np.ndarray] = []
        self.source_numbers: dict[str, int] = {}
        self.counts: Counter = Counter()
        self.num_dialogues = 0

    def append(self, part: Part) -> None:
        """Add a part. Its sources get numbers in the order in which they first come."""
        numbers = [self.source_numbers.setdefault(name, len(self.source_numbers)) for name in part.source_names]
        if len(part.lengths):
            for name, values in (("tokens", part.tokens), ("loss_mask", part.loss_mask)):
                self.dtypes[name] = values.dtype
                self.files[name].write(values.tobytes())
            self.lengths.append(part.lengths)
            self.dialogues.append(part.dialogues)
            self.sources.append(np.array(numbers, np.int32)[part.sources])
        self.counts.update(part.counts)
        self.num_dialogues += part.num_dialogues

    def __enter__(self) -> "_Segments":
        return self

    def __exit__(self, *error) -> None:
        for file in self.files.values():
            file.close()


def _write_rows(folder: Path, segments: _Segments, options: PackOptions) -> dict[str, Any]:
    """Pack the segments and write the arrays; returns their part of the manifest."""
    lengths = np.concatenate(segments.lengths)
    packing = pack(lengths, options.sequence_length, options.seed)
    per_token = {name: np.memmap(path, segments.dtypes[name], "r") for name, path in segments.paths.items()}
    per_segment = {"dialogue": np.concatenate(segments.dialogues), "source": np.concatenate(segments.sources)}
    files = write_arrays(folder, packing, lengths, per_token, per_segment)
    del per_token
    for path in segments.paths.values():
        path.unlink()
    num_rows = len(packing.row_offsets) - 1
    report = {"dialogues": segments.num_dialogues, "segments": len(lengths), "rows": num_rows}
    report |= {"lower_bound": lower_bound(lengths, options.sequence_length)}
    for what in ("in", "shortened", "cut", "dropped", "kept"):
        report[what] = {unit: segments.counts[what, unit] for unit in ("instances", "tokens", "trained")}
    report["padding"] = num_rows * options.sequence_length - report["kept"]["tokens"]
    return {"rows": num_rows, "sources": list(segments.source_numbers), "report": report, **files}


def describe(content: dict[str, Any]) -> str:
    """The report of a manifest as lines for people."""
    report, slots = content["report"], content["rows"] * content["sequence_length"]
    kept = report["kept"]
    lines = [
        f"dialogues      {report['dialogues']:,}, as {report['in']['instances']:,} instances ({content['mode']})",
        f"rows           {report['rows']:,} of {content['sequence_length']:,} tokens; "
        f"no packing has less than {report['lower_bound']:,}",
        f"fill           {kept['tokens'] / slots:.3%}: {kept['tokens']:,} tokens in {report['segments']:,} segments, "
        f"{report['padding']:,} padding",
        f"to be learnt   {kept['trained']:,} tokens",
    ]
    for what, meaning in (("shortened", "oldest turns left out"), ("cut", "questions cut"), ("dropped", "dropped")):
        lost = report[what]
        lines.append(
            f"{what:14} {lost['instances']:,} instances, {lost['tokens']:,} tokens, "
            f"{lost['trained']:,} of them to be learnt ({meaning})"
        )
    return "\n".join(lines + [f"  {count:,} x {reason}" for reason, count in content["dropped"].items()])
