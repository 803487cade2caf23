"""Files that cross a step: atomic outputs, JSON lines with located errors, hashes and manifests.

Every step reads files and writes files. An output appears under its final name only when it is whole, and beside it
lies a manifest that says what it was made from, so that a step whose parents are unchanged is skipped.
"""

import contextlib
import fcntl
import glob
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from megatron_chimed.errors import InputError

SCHEMA = 1
BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 64 << 20
"""A line is held in memory whole, several times over while it is tokenised; a longer one is rejected."""


@contextlib.contextmanager
def atomic_output(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file that appears at `path` only if the block ends without an error, and survives a power cut then.

    `mode` is "w" (UTF-8 text, "\\n" line ends) or "wb".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path, may_replace: Callable[[Path], bool] = lambda path: False) -> Iterator[Path]:
    """Give an empty folder to fill, which gets the name `path` only if the block ends without an error.

    It lies beside `path` as ``.NAME.incomplete``; what a killed run has left there is removed first. may_replace: says
    of a folder that is there already whether the new one takes its place; a process that has it open keeps it. Raises
    InputError when something else is there, or when another process is writing it.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or may_replace(path))):
        raise InputError(f"{path}: exists already; remove it or name another folder")
    folder, old = (path.with_name(f".{path.name}.{state}") for state in ("incomplete", "old"))
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)  # the system gives up a lock with the process that holds it
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is writing it; wait for it or name another folder") from None
        try:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                os.rename(path, old)
            os.rename(folder, path)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _umask() -> int:
    """The process's umask: mkstemp makes private files, outputs should have ordinary permissions."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def expand(patterns: Iterable[str], flag: str = "") -> list[str]:
    """The files that names and globs stand for: in the order given, those of one glob by name.

    A glob passes over folders, and over files of rejected rows of an earlier run. flag: stands before the name in
    a message, for example "--exclude ". Raises InputError for a name or glob that has no file.
    """
    found: list[str] = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            raise InputError(f"{flag}{pattern}: not a file; give files or a pattern such as {pattern}/*.jsonl")
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        files = [path for path in matches if os.path.isfile(path)]
        files = [path for path in files if path == pattern or not path.endswith(".rejected.jsonl")]
        if not files:
            raise InputError(f"{flag}{pattern}: no such file, and no file matches it as a pattern")
        found += files
    return found


LFS_POINTER = b"version https://git-lfs"


def is_lfs_pointer(path: str | Path) -> bool:
    """Whether a file is a Git LFS pointer: what a clone without git-lfs has in the place of a large file."""
    try:
        with open(path, "rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def require_content(path: str | Path) -> None:
    """Raise InputError for a Git LFS pointer."""
    if is_lfs_pointer(path):
        raise InputError(f"{path}: is a Git LFS pointer, not the file; run git lfs pull")


@contextlib.contextmanager
def open_input(path: str | Path) -> Iterator[IO[bytes]]:
    """Open an input in binary, through gzip if its name ends in .gz.

    Raises InputError if there is no such file or it is a Git LFS pointer, and within the block if the gzip file proves
    damaged.
    """
    require_content(path)
    try:
        file = gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; expected a file") from None
    with file:
        try:
            yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: damaged gzip file ({error}); fetch or compress it again") from None


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line with its end) of a file, without a byte-order mark.

    Raises InputError if there is no such file or it is a damaged .gz.
    """
    with open_input(path) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(BOM) if number == 1 else line


def parse_line(line: bytes) -> dict:
    """One JSON-lines row to a dict.

    Raises InputError with the reason alone (the caller knows file and line): invalid UTF-8, invalid JSON, nested too
    deeply, a number that is too long, or not an object.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"invalid UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"invalid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise InputError("invalid JSON (nested too deeply)") from None
    except ValueError:
        raise InputError("invalid JSON (a number is too long)") from None
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type(row).__name__}")
    return row


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, row) of a JSON-lines file; blank lines are passed over.

    Raises InputError as ``file:line: reason`` at the first bad line.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        with located(path, number):
            row = parse_line(line)
        yield number, row


@contextlib.contextmanager
def located(path: str | Path, number: int) -> Iterator[None]:
    """Put file and line in front of an InputError's text."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}:{number}: {error}") from None


def read_records(path: str | Path, record: type) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, record) of JSON lines, by the record's ``from_row``; blank lines are passed over.

    Raises InputError as ``file:line: reason`` at the first bad line.
    """
    for number, row in read_json_lines(path):
        with located(path, number):
            made = record.from_row(row)
        yield number, made


def write_json_lines(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as JSON lines (UTF-8, not escaped), atomically. Returns their number."""
    count = 0
    with atomic_output(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON value, indented, atomically. Raises InputError for half a character, which is no UTF-8."""
    text = to_json(value, path)
    with atomic_output(path) as file:
        file.write(f"{text}\n")


def to_json(value: Any, where: str | Path) -> str:
    """A value as indented JSON. Raises InputError for half a character, which is no UTF-8. where: for its message."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 30) : error.start]
        raise InputError(f"{where}: half a character behind {near!r}; mend the file") from None
    return text


def read_json(path: str | Path) -> Any:
    """Read one JSON value. Raises InputError with the file's name when it is missing or not JSON."""
    with open_input(path) as file:
        try:
            return json.loads(file.read().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a JSON file ({error})") from None


def manifest(*, made_by: str, rows: int, sha256: Any, parents: dict, dropped: dict[str, int], **extra: Any) -> dict:
    """The manifest of an output.

    made_by: the command; rows: records written; sha256: the output's hash, or one per file; parents: {name: hash} of
    all that went in, settings too; dropped: {reason: count} of records that did not make it.
    """
    return {
        "schema": SCHEMA,
        "made_by": made_by,
        "rows": rows,
        "sha256": sha256,
        "parents": parents,
        "dropped": dropped,
        **extra,
    }
