"""Candidates while they are made: an append-only file that a kill cannot spoil, and the sorted file that it becomes."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import parse_line, read_lines, read_records, write_json_lines
from megatron_chimed.records import Candidate

Key = tuple[int, str, int]


class CandidateStore:
    """Candidates by key in a file that only grows, a line for each batch: a batch is in it as a whole, or not at all.

    The first line says what the batches are made from. A last line that a kill cut off is taken away; a store made
    from something else is set aside as NAME.old and begun anew. Used by `with`; one process at a time.
    """

    def __init__(self, path: str | Path, inputs_hash: str):
        """inputs_hash: a hash of all that decides the candidates. Raises InputError as ``file:line: reason``."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.candidates: dict[Key, Candidate] = {}
        header, whole = self._read(inputs_hash)
        self._file = open(self.path, "ab" if header else "wb")  # noqa: SIM115  closed by `with`
        self._file.truncate(whole)
        if not header:
            self._write({"made_from": inputs_hash})

    def _read(self, inputs_hash: str) -> tuple[bool, int]:
        """(Whether the file begins with our header, bytes up to the end of its last whole line)."""
        whole = 0
        if not self.path.is_file():
            return False, 0
        for number, line in read_lines(self.path):
            if not line.endswith(b"\n"):
                break
            try:
                row = parse_line(line)
                if number == 1 and row.get("made_from") != inputs_hash:
                    os.replace(self.path, self.path.with_name(f"{self.path.name}.old"))
                    return False, 0
                if number > 1:
                    self._remember(_batch(row))
            except InputError as error:
                raise InputError(
                    f"{self.path}:{number}: {error}; remove this line, and its batch is made again"
                ) from None
            whole += len(line)
        return whole > 0, whole

    def append(self, batch: Sequence[Candidate]) -> None:
        """Add a batch; it is on the disk when this returns. Raises InputError if one of its keys is there already."""
        self._remember(batch)
        self._write({"batch": [candidate.to_row() for candidate in batch]})

    def _remember(self, batch: Iterable[Candidate]) -> None:
        for candidate in batch:
            if candidate.key in self.candidates:
                raise InputError(f"candidate {candidate.key} is there twice")
            self.candidates[candidate.key] = candidate

    def _write(self, row: dict) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def publish(self, path: Path) -> int:
        """Write all candidates to `path`, sorted by key, atomically. Returns their number."""
        return write_candidates(path, self.candidates.values())

    def __enter__(self) -> "CandidateStore":
        return self

    def __exit__(self, *error) -> None:
        self._file.close()


def _batch(row: dict) -> list[Candidate]:
    """The candidates of a line. Raises InputError with the reason alone."""
    if not isinstance(row.get("batch"), list):
        raise InputError("no batch of candidates")
    return [Candidate.from_row(one) for one in row["batch"]]


def count_stored(path: Path) -> int:
    """How many candidates a store holds in whole lines, without changing it; 0 where there is none. For a status."""
    if not path.is_file():
        return 0
    lines = (line for number, line in read_lines(path) if number > 1 and line.endswith(b"\n"))
    return sum(line.count(b'"num_tokens": ') for line in lines)


def write_candidates(path: Path, candidates: Iterable[Candidate]) -> int:
    """Write candidates as JSON lines, sorted by key, atomically. Returns their number."""
    return write_json_lines(path, (one.to_row() for one in sorted(candidates, key=lambda one: one.key)))


def read_candidates(path: Path) -> list[Candidate]:
    """Candidates of a file. Raises InputError as ``file:line: reason``: a bad row, a key that is there twice."""
    found: dict[Key, Candidate] = {}
    for number, candidate in read_records(path, Candidate):
        if candidate.key in found:
            raise InputError(f"{path}:{number}: candidate {candidate.key} is there twice; keep one")
        found[candidate.key] = candidate
    return list(found.values())
