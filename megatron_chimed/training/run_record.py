"""The record of a run beside its checkpoints: what was run, by which code, where, when, and on which data.

```
run.json      one entry for each attempt; a resumed run has several
config.yaml   the resolved configuration of the newest attempt
log.txt       what rank 0 and the last rank said on stderr, each line with its time, over all attempts
record/       files that attempts refer to: configuration, packages, manifests of the data, each once, by its hash
```

No part of the environment is written, so no key is.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import yaml

from megatron_chimed import __version__
from megatron_chimed.corpus.manifest import find_corpus_manifest
from megatron_chimed.errors import InputError, one_line
from megatron_chimed.jsonl import SCHEMA, atomic_output, read_json, sha256_file, write_json

ROOT = Path(__file__).resolve().parents[2]
KILLED = "killed"
"""Outcome of an attempt that did not write its own: it was killed, or its machine was lost."""
OLD_KILLED = "ended without a word: killed, or its machine was lost"  # what the first release wrote


class RunRecord:
    """One attempt of a run. Every rank has one; only rank 0 writes run.json, and without a folder nobody writes."""

    def __init__(self, folder: str | Path | None, rank: int = 0, world_size: int = 1):
        self.folder = Path(folder) if folder else None
        self.is_first = rank == 0
        self.attempts: list[dict[str, Any]] = []
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.is_first or rank == world_size - 1:
            sys.stderr = Tee(sys.stderr, self.folder / "log.txt")
        if int(os.environ.get("LOCAL_RANK", 0)) == 0 and not self.is_first:
            note(self.folder / "log.txt", f"rank {rank} and those after it are on {socket.gethostname()}")

    def begin(self, resolved: dict, world: str, data: Iterable[str], iterations: tuple[int, int]) -> None:
        """Write down that an attempt starts.

        resolved: the configuration; world: stage, ranks and their layout in words; data: dataset prefixes and folders
        of packed rows; iterations: from which one, and how far.
        """
        if self.folder is None or not self.is_first:
            return
        config = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        with atomic_output(self.folder / "config.yaml") as file:
            file.write(config)
        self.attempts = read_attempts(self.folder)
        for earlier in self.attempts:
            earlier["outcome"] = earlier["outcome"] or KILLED
        attempt = {
            "started": now(),
            "ended": None,
            "outcome": None,
            "iterations": list(iterations),
            "command": shlex.join(sys.orig_argv),
            "working_directory": os.getcwd(),
            "code": {"version": __version__} | git_state(ROOT),
            "config": self._keep("config.yaml", config.encode()),
            "packages": self._keep("packages.json", json.dumps(packages(), indent=2).encode()),
            "world": world,
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "data": [self._data(path) for path in dict.fromkeys(data)],
        }
        self.attempts.append(attempt)
        write_json(self.folder / "run.json", {"schema": SCHEMA, "attempts": self.attempts})
        note(self.folder / "log.txt", f"attempt {len(self.attempts)} starts: {attempt['command']}")

    def end(self, error: BaseException | None) -> None:
        """Write down how the attempt ended; nothing where it has not begun. error: what it ended by, if any."""
        if not self.attempts:
            return
        code = error.code if isinstance(error, SystemExit) else None
        if error is None:
            outcome = "finished"
        elif isinstance(error, SystemExit):
            outcome = f"stopped by the trainer, exit code {code or 0}"
        else:
            outcome = f"{type(error).__name__}: {one_line(error)}"
        self.attempts[-1] |= {"ended": now(), "outcome": outcome}
        with contextlib.suppress(OSError):  # a full disk: what ended the attempt is what has to be told
            write_json(self.folder / "run.json", {"schema": SCHEMA, "attempts": self.attempts})
        note(self.folder / "log.txt", f"attempt {len(self.attempts)} ends: {outcome}")

    def _keep(self, name: str, content: bytes) -> str:
        """Put content into record/ unless it is there, and return its path below the run's folder."""
        stem, _, suffix = name.rpartition(".")
        kept = f"record/{stem}-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
        if not (self.folder / kept).is_file():
            with atomic_output(self.folder / kept, "wb") as file:
                file.write(content)
        return kept

    def _data(self, path: str) -> dict[str, str | None]:
        """Path, manifest's copy and manifest's hash of one data set; None for both where there is no manifest."""
        try:
            packed = Path(path) / "manifest.json"
            manifest = packed if packed.is_file() else find_corpus_manifest(path)[0]
            copy = self._keep("manifest.json", manifest.read_bytes())
        except (InputError, OSError):  # the data sets' own checks tell more
            return {"path": str(path), "manifest": None, "sha256": None}
        return {"path": str(path), "manifest": copy, "sha256": sha256_file(manifest)}


def read_attempts(folder: str | Path) -> list[dict[str, Any]]:
    """The attempts in a run's run.json, oldest first; [] when there is none. Raises InputError when it is no record."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        return []
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("attempts"), list):
        raise InputError(f"{path}: is no record of a run; remove it or name another folder")
    attempts = content["attempts"]
    return [one | {"outcome": KILLED} if one.get("outcome") == OLD_KILLED else one for one in attempts]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def packages() -> dict[str, str]:
    """{name: version} of Python and all that is installed for it."""
    found = {}
    for one in importlib.metadata.distributions():
        text = one.read_text("METADATA") or one.read_text("PKG-INFO") or ""
        fields = dict(re.findall(r"^(Name|Version): *(.*\S)", text.partition("\n\n")[0], re.MULTILINE))
        if len(fields) == 2:  # parsed as a mail, as importlib does, each start of a training would take 0.15 s longer
            found[fields["Name"]] = fields["Version"]
    return {"python": platform.python_version()} | dict(sorted(found.items(), key=lambda one: one[0].lower()))


def git_state(root: Path) -> dict[str, Any]:
    """{"git": commit, "dirty": whether files differ from it, new ones too}; both None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        if not Path(git("rev-parse", "--show-toplevel")).samefile(root):  # installed below some other checkout
            return {"git": None, "dirty": None}
        return {"git": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"git": None, "dirty": None}


def note(path: Path, line: str) -> None:
    """Append a line with its time, in one write, so that lines of several processes stay whole.

    A disk that is full does not end a training for its log.
    """
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, f"{now()} {line}\n".encode(errors="replace"))
        finally:
            os.close(handle)


class Tee:
    """A stream whose whole lines are also kept in a file, as a terminal shows them in the end: a progress bar that
    draws over itself leaves its last state."""

    def __init__(self, stream: TextIO, path: Path):
        self._stream, self._path, self._pending = stream, path, ""

    def write(self, text: str) -> int:
        """Write to the stream, and lines that end to the file."""
        *lines, pending = (self._pending + text).split("\n")
        for line in lines:
            if shown := line.rstrip("\r").rpartition("\r")[2].rstrip():
                note(self._path, shown)
        self._pending = pending.rpartition("\r")[2]
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
