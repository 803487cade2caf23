"""Assemble parts in order to one finished corpus: join, drop duplicates, hash, publish all files at once."""

import collections
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from megatron_chimed.corpus.indexed_dataset import write_index
from megatron_chimed.corpus.part import Part, are_new, make_deduplicator
from megatron_chimed.jsonl import manifest, sha256_file, write_json


def dataset_name(prefix: Path, key: str) -> str:
    """Return the name of a key's dataset, as Megatron's tool gives it: PREFIX_text_document (a name, not a path)."""
    return f"{prefix.name}_{key}_document"


def manifest_path(prefix: Path) -> Path:
    """Name the manifest: PREFIX.manifest.json."""
    return prefix.with_name(f"{prefix.name}.manifest.json")


class _Dataset:
    """Writer of one .bin, and of what its .idx will hold."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.path, self.dtype = path, dtype
        self.file = open(path, "wb")  # noqa: SIM115 (closed by finish)
        self.digest = hashlib.sha256()
        self.lengths: list[np.ndarray] = []
        self.counts: list[np.ndarray] = []

    def add(self, ids: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
        content = ids.astype(self.dtype, copy=False).data
        self.file.write(content)
        self.digest.update(content)
        self.lengths.append(lengths)
        self.counts.append(counts)

    def finish(self) -> tuple[str, str]:
        """Write the .idx beside the .bin. Returns the SHA-256 of both."""
        _close(self.file)
        counts = np.concatenate([np.zeros(1, np.int64), *self.counts])
        index = self.path.with_suffix(".idx")
        with open(index, "wb") as file:
            write_index(file, self.dtype, np.concatenate([np.zeros(0, np.int32), *self.lengths]), np.cumsum(counts))
            file.flush()
            os.fsync(file.fileno())
        return self.digest.hexdigest(), sha256_file(index)


def _close(file) -> None:
    """Close a file of which the disk has taken every byte."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


class Assembler:
    """Assembler of parts in document order; keeps the finished files in `folder` until `publish`.

    Memory grows by 8 bytes for each document, plus what deduplication remembers; token ids are passed on at once.
    keep_signatures: write them beside the corpus, for the deduplication across shards when these are merged.
    """

    def __init__(
        self,
        folder: Path,
        json_keys: Iterable[str],
        dtype: np.dtype,
        dedup: str | None = None,
        keep_signatures: bool = False,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.dtype = folder, dtype
        self.datasets = {key: _Dataset(folder / f"{number}.bin", dtype) for number, key in enumerate(json_keys)}
        self.rejected = open(folder / "rejected.jsonl", "wb")  # noqa: SIM115 (closed by publish)
        self.deduplicator = make_deduplicator(dedup)
        self.dedup, self.keep_signatures = dedup, keep_signatures
        self.signatures: list[np.ndarray] = []
        self.num_documents = self.num_rows = self.num_tokens = self.num_duplicates = 0
        self.reasons, self.redacted, self.cleaned = (collections.Counter() for _ in range(3))

    def add(self, part: Part, rejected: bytes | None = None) -> None:
        """Append a part. rejected: its rejected rows as they go into their file."""
        self.rejected.write(part.rejected if rejected is None else rejected)
        self.num_rows += part.rows
        self.reasons.update(part.reasons)
        self.redacted.update(part.redacted)
        self.cleaned.update(part.cleaned)
        keep = np.ones(len(part.signatures), dtype=bool)
        if self.deduplicator:
            keep = are_new(self.deduplicator, part.signatures)
            self.num_duplicates += int((~keep).sum())
        if self.keep_signatures and len(part.signatures):
            self.signatures.append(part.signatures)
        for key, documents in part.documents.items():
            documents = documents.select(keep)
            self.datasets[key].add(documents.ids, documents.lengths, documents.counts)
            self.num_tokens += len(documents.ids)
        self.num_documents += int(keep.sum())

    def close(self) -> None:
        """Let go of all files: one that is forgotten would write its last bytes later, into those of the next run."""
        for file in (self.rejected, *(dataset.file for dataset in self.datasets.values())):
            file.close()

    def first_rejected(self) -> dict:
        """Read the first row in the file of rejected rows; there must be one."""
        self.rejected.flush()
        with open(self.folder / "rejected.jsonl", "rb") as file:
            return json.loads(file.readline())

    def publish(self, prefix: Path, *, made_by: str, parents: dict, **extra) -> dict:
        """Finish all files and move them to their final names, the manifest last: where it is, the corpus is whole.

        Returns the manifest. extra: further fields of it.
        """
        _close(self.rejected)
        files, hashes = {f"{prefix.name}.rejected.jsonl": self.folder / "rejected.jsonl"}, {}
        for key, dataset in self.datasets.items():
            name = dataset_name(prefix, key)
            hashes[f"{name}.bin"], hashes[f"{name}.idx"] = dataset.finish()
            files |= {f"{name}.bin": dataset.path, f"{name}.idx": dataset.path.with_suffix(".idx")}
        if self.keep_signatures:
            name, path = f"{prefix.name}.signatures.npy", self.folder / "signatures.npy"
            np.save(path, np.concatenate(self.signatures or [np.zeros((0, 0), np.uint8)]))
            files[name], hashes[name] = path, sha256_file(path)
        dropped = self.reasons | ({f"{self.dedup} duplicate": self.num_duplicates} if self.dedup else {})
        content = manifest(
            made_by=made_by,
            rows=self.num_documents,
            sha256=hashes,
            parents=parents,
            dropped=dict(sorted(dropped.items())),
            bytes={name: files[name].stat().st_size for name in hashes},
            documents=self.num_documents,
            tokens=self.num_tokens,
            dtype=self.dtype.name,
            input_rows=self.num_rows,
            redacted=dict(sorted(self.redacted.items())),
            cleaned=dict(sorted(self.cleaned.items())),
            json_keys=list(self.datasets),
            **extra,
        )
        # An older corpus of this name is no longer whole as soon as one of its files is replaced.
        manifest_path(prefix).unlink(missing_ok=True)
        for name, path in files.items():
            os.replace(path, prefix.with_name(name))
        write_json(manifest_path(prefix), content)
        return content


def number_rejected(rejected: bytes, path: str, lines_before: int) -> bytes:
    """Number the rejected rows of a part for their file: with the input's name and its own line numbers."""
    rows = bytearray()
    for line in rejected.splitlines():
        row = json.loads(line)
        row = {"file": path, "line": row["line"] + lines_before, "reason": row["reason"], "excerpt": row["excerpt"]}
        rows += json.dumps(row, ensure_ascii=False).encode() + b"\n"
    return bytes(rows)
