"""Part of a corpus, made of one batch of lines: token ids, signatures for deduplication, rejected rows, counts.

A part lies in one .npz file. It is written under another name and renamed, and zip checks every array with a CRC, so a
part that can be read is whole.
"""

import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_chimed.data.dedup import Deduplicator, ExactDeduplicator, NearDeduplicator


@dataclass(frozen=True)
class Documents:
    """The documents of one JSON key: ids [tokens]; lengths [sequences] int32; counts [documents]: their sequences.

    A document whose text is one string is one sequence; a list of strings gives one sequence for each.
    """

    ids: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray

    def num_tokens(self) -> np.ndarray:
        """Count the tokens of each document: int64 [documents]."""
        if len(self.counts) == len(self.lengths) and (self.counts == 1).all():
            return self.lengths.astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        last = np.cumsum(self.counts)
        return ends[last] - ends[last - self.counts]

    def select(self, keep: np.ndarray) -> "Documents":
        """Select the documents with a true entry in keep [documents] bool."""
        if keep.all():
            return self
        ids = self.ids[np.repeat(keep, self.num_tokens())]
        return Documents(ids, self.lengths[np.repeat(keep, self.counts)], self.counts[keep])


@dataclass(frozen=True)
class Part:
    """documents: by JSON key, all of the same number; signatures [documents, width], width 0 without deduplication.

    lines: lines of the batch; rows: those that are not blank; rejected: JSON lines {"line" (from 1 within the batch),
    "reason", "text"}; reasons, redacted, cleaned: counts by kind, the last by rule.
    """

    documents: dict[str, Documents]
    signatures: np.ndarray
    lines: int = 0
    rows: int = 0
    rejected: bytes = b""
    reasons: dict[str, int] = field(default_factory=dict)
    redacted: dict[str, int] = field(default_factory=dict)
    cleaned: dict[str, int] = field(default_factory=dict)


def save_part(path: Path, part: Part) -> None:
    """Write a part, so that it is whole as soon as it has its name."""
    arrays = {"signatures": part.signatures, "rejected": np.frombuffer(part.rejected, dtype=np.uint8)}
    for number, documents in enumerate(part.documents.values()):
        arrays |= {f"ids{number}": documents.ids, f"lengths{number}": documents.lengths}
        arrays[f"counts{number}"] = documents.counts
    rest = {"keys": list(part.documents), "lines": part.lines, "rows": part.rows}
    rest |= {"reasons": part.reasons, "redacted": part.redacted, "cleaned": part.cleaned}
    arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8)
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "wb") as file:
        np.savez(file, **arrays)
    os.replace(unfinished, path)


def load_part(path: Path) -> Part | None:
    """Read a part; None if there is none, or it is damaged (a power cut may leave one so)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rest = json.loads(arrays["rest"].tobytes())
            keys = rest.pop("keys")
            documents = {
                key: Documents(*(arrays[f"{name}{number}"] for name in ("ids", "lengths", "counts")))
                for number, key in enumerate(keys)
            }
            return Part(documents, arrays["signatures"], rejected=arrays["rejected"].tobytes(), **rest)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def make_deduplicator(kind: str | None) -> Deduplicator | None:
    """Make a deduplicator. kind: "exact", "near" or None for no deduplication."""
    return {"exact": ExactDeduplicator, "near": NearDeduplicator}[kind]() if kind else None


def sign_all(deduplicator: Deduplicator | None, rows: Iterable[tuple[str | list[str], ...]]) -> np.ndarray:
    """Compute the signatures of documents, each a text for each JSON key: [documents, width]; width 0 without a
    deduplicator."""
    if deduplicator is None:
        return np.zeros((sum(1 for _ in rows), 0), dtype=np.uint8)
    joined = ["\n".join(text if isinstance(text, str) else "\n".join(text) for text in row) for row in rows]
    signatures = deduplicator.signatures(joined)
    if not signatures:
        return np.zeros((0, 0), dtype=np.uint8)
    if isinstance(signatures[0], bytes):
        return np.frombuffer(b"".join(signatures), dtype=np.uint8).reshape(len(signatures), -1)
    return np.stack(signatures)


def are_new(deduplicator: Deduplicator, signatures: np.ndarray) -> np.ndarray:
    """Find the documents that are no duplicate of one before: bool [documents], from `sign_all`'s signatures."""
    rows = [row.tobytes() for row in signatures] if signatures.dtype == np.uint8 else signatures
    return ~np.array(deduplicator.are_duplicates(rows), dtype=bool)
