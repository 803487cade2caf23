"""Steps: what an output is made from, whether it is up to date, and how it is made once and never at the same time.

A step reads files and writes files, and then a manifest. An output is up to date when its manifest states what is there
now: the same parents (hashes of all that goes in, settings too) and the same outputs.
"""

import contextlib
import fcntl
import hashlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from megatron_chimed.checkpoints import TRACKER, resolve
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import manifest, read_json, sha256_file, sha256_json, write_json

SAMPLED = 1 << 20  # bytes at each end of a file of weights


def changed_parents(content: Mapping[str, Any], parents: Mapping[str, Any]) -> list[str]:
    """The parents that are not those of a manifest, by name."""
    recorded = content.get("parents")
    recorded = recorded if isinstance(recorded, dict) else {}
    return [name for name, value in parents.items() if recorded.get(name) != value]


def find_up_to_date(
    path: Path,
    parents: Mapping[str, Any],
    *,
    late: Mapping[str, Callable[[], Any]] | None = None,
    accept: Callable[[dict[str, Any]], bool] = lambda content: True,
) -> dict[str, Any] | None:
    """The manifest at `path`, if it states these parents and its outputs lie beside it with the sizes that it states
    under ``bytes``; else None.

    late: parents that take long to compute, as they read all inputs; asked for only when all else is equal. accept:
    what else must hold of the manifest; one that lacks what it looks for is not up to date.
    """
    try:
        content = read_json(path)
        sizes = {path.with_name(Path(name).name): size for name, size in content["bytes"].items()}
        whole = all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())
        if not whole or changed_parents(content, parents) or not accept(content):
            return None
    except (InputError, OSError, KeyError, TypeError, AttributeError):  # none, or not one of this step
        return None
    return None if changed_parents(content, {name: compute() for name, compute in (late or {}).items()}) else content


@dataclass(frozen=True)
class StepResult:
    """What a step has written: rows, what it dropped for which reason, and figures for its manifest."""

    rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step.

    made_by: the command, for the manifest; inputs: the paths that it reads, by name; outputs: files or folders that it
    writes; run: does the work, given a hash of the parents; progress: how far an unfinished run is, for people,
    "" for nothing.
    """

    name: str
    made_by: str
    manifest: Path
    inputs: dict[str, list[Path]]
    settings: dict[str, Any]
    outputs: list[Path]
    run: Callable[[str], StepResult]
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
    if (folder / TRACKER).is_file():
        folder = resolve(folder)
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
    changed = changed_parents(content, parents)
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
    result = step.run(sha256_json(parents))
    content = manifest(
        made_by=step.made_by,
        rows=result.rows,
        sha256={path.name: identify(path) for path in step.outputs},
        parents=parents,
        dropped=result.dropped,
        settings=step.settings,
        **result.figures,
    )
    write_json(step.manifest, content)
    return True


def lock_folder(folder: str | Path, what: str) -> int:
    """Keep other jobs out of a folder until this process ends or closes the returned handle; makes the folder.

    what: the flag or the key that names the folder, for messages. Raises InputError when another process holds it
    (saying which one), and OSError when the folder cannot be made. Where the file system has no locks a line warns.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 1000, 0).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise InputError(
            f"{folder}: another job is running there ({owner}); wait for it, or name another {what}"
        ) from None
    except OSError as error:
        print(f"warning: {folder}: no lock ({error.strerror}); see that no other job runs there", file=sys.stderr)
        return handle
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other jobs out of a folder as long as this process lives. Raises InputError when another one is in it."""
    handle = lock_folder(folder, "output")
    try:
        yield
    finally:
        os.close(handle)
