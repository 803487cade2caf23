"""Steps of the loop: what each is made from, whether it is done, and how it is run once and never at the same time.

A step reads files and writes files, and then its manifest, NAME.manifest.json. It is done when the manifest states what
lies there now: the same parents (hashes of all that goes in, settings too) and the same outputs.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from megatron_chimed.checkpoints import TRACKER, path_of
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import manifest, read_json, sha256_file, sha256_json, write_json
from megatron_chimed.locks import lock_folder

MADE_BY = "tools/rejection_sampling.py"
SAMPLED = 1 << 20  # bytes at each end of a file of weights


@dataclass(frozen=True)
class Made:
    """What a step has made: rows, what it dropped for which reason, and figures for its manifest."""

    rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step of one round.

    parents: the paths that it reads by name, and its settings; outputs: files or folders that it writes; run: does the
    work, given a hash of the parents; progress: what is there of an unfinished run, for people, "" for nothing.
    """

    name: str
    manifest: Path
    inputs: dict[str, list[Path]]
    settings: dict[str, Any]
    outputs: list[Path]
    run: Callable[[str], Made]
    progress: Callable[[], str] = lambda: ""

    def parents(self) -> dict[str, Any]:
        """Hashes of all that goes in. Raises InputError for an input that is not there."""
        return {name: [identify(path) for path in paths] for name, paths in self.inputs.items()} | {
            "settings": sha256_json(self.settings)
        }


@dataclass(frozen=True)
class State:
    """done, stale (what was made is made from something else), partial (a run was interrupted), or to do."""

    name: Literal["done", "stale", "partial", "to do"]
    detail: str = ""


def identify(path: Path) -> str:
    """A hash of a file, of packed rows (by their manifest), or of a model's folder (`fingerprint`).

    Raises InputError when it is none of these.
    """
    if path.is_dir():
        packed = path / "manifest.json"
        return _hash_file(packed) if packed.is_file() else fingerprint(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    return _hash_file(path)


def _hash_file(path: Path) -> str:
    """The SHA-256 of a file, computed once as long as it does not change."""
    status = path.stat()
    return _cached_hash(path, status.st_size, status.st_mtime_ns)


@cache
def _cached_hash(path: Path, size: int, modified: int) -> str:
    return sha256_file(path)


def fingerprint(folder: Path) -> str:
    """What tells one model's folder from another's: names and sizes of its files, and 1 MiB at both ends of each.

    Of a folder of Megatron checkpoints the newest one counts. Reading all of a large model would take minutes each
    time; a training moves all weights, so that the ends show it, but a flipped bit in the middle they do not.
    """
    tracker = folder / TRACKER
    if tracker.is_file():
        iteration = tracker.read_text().strip()
        folder = path_of(folder, int(iteration)) if iteration.isdigit() else folder / iteration
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise InputError(f"{folder}: no model there")
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(SAMPLED))
            file.seek(max(0, size - SAMPLED))
            digest.update(file.read(SAMPLED))
    return digest.hexdigest()


def state_of(step: Step) -> State:
    """Whether a step is done."""
    try:
        content = read_json(step.manifest)
    except InputError:
        progress = step.progress()
        return State("partial", progress) if progress else State("to do")
    try:
        parents = step.parents()
    except InputError as error:
        return State("stale", str(error))
    recorded = content.get("parents", {})
    changed = [name for name in parents if parents[name] != recorded.get(name)]
    for path in step.outputs:
        if not path.exists() or identify(path) != content.get("sha256", {}).get(path.name):
            changed.append(path.name)
    if changed:
        return State("stale", f"changed: {', '.join(changed)}")
    dropped = ", ".join(f"{count} {reason}" for reason, count in content["dropped"].items())
    return State("done", f"{content['rows']} rows" + (f"; dropped: {dropped}" if dropped else ""))


def run_step(step: Step, where: str) -> bool:
    """Run a step unless it is done; returns whether it was run. Raises InputError as its work does."""
    if state_of(step).name == "done":
        print(f"{where} {step.name}: up to date", file=sys.stderr)
        return False
    print(f"{where} {step.name}", file=sys.stderr, flush=True)
    parents = step.parents()
    step.manifest.unlink(missing_ok=True)  # what it describes is about to be replaced
    made = step.run(sha256_json(parents))
    content = manifest(
        made_by=MADE_BY,
        rows=made.rows,
        sha256={path.name: identify(path) for path in step.outputs},
        parents=parents,
        dropped=made.dropped,
        settings=step.settings,
        **made.figures,
    )
    write_json(step.manifest, content)
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other jobs out of a folder as long as this process lives. Raises InputError when another one is in it."""
    handle = lock_folder(folder, "output")
    try:
        yield
    finally:
        os.close(handle)
