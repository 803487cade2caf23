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
"""A line is held in memory whole, several times over while it is tokenised; a longer one is put in quarantine."""


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


def glob_inputs(pattern: str) -> list[str]:
    """The files that a pattern matches, by name, without rows that an earlier run has put in quarantine."""
    return [path for path in sorted(glob.glob(pattern, recursive=True)) if not path.endswith(".rejected.jsonl")]


@contextlib.contextmanager
def open_input(path: str | Path) -> Iterator[IO[bytes]]:
    """Open an input in binary, through gzip if its name ends in .gz.

    Raises InputError if there is no such file, and within the block if the gzip file proves damaged.
    """
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
        try:
            yield number, parse_line(line)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None


def write_json_lines(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as JSON lines (UTF-8, not escaped), atomically. Returns their number."""
    count = 0
    with atomic_output(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON value, indented, atomically."""
    with atomic_output(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


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


def find_corpus_manifest(dataset_prefix: str | Path) -> tuple[Path, dict]:
    """The manifest that lists ``dataset_prefix.bin``, for example PREFIX.manifest.json for PREFIX_text_document.

    Manifests of other things, whole or not, are passed over. Raises InputError when there is none, naming the tool
    that writes one.
    """
    dataset_prefix = Path(dataset_prefix)
    binary = f"{dataset_prefix.name}.bin"
    for path in sorted(dataset_prefix.parent.glob("*.manifest.json")):
        try:
            content = read_json(path)
        except (InputError, OSError):
            continue
        sizes = content.get("bytes") if isinstance(content, dict) else None
        if isinstance(sizes, dict) and binary in sizes:
            return path, content
    raise InputError(
        f"{dataset_prefix}: no manifest lists {binary}; build the corpus with tools/preprocess_data.py, "
        f"or adopt a finished one with tools/verify_corpus.py --write-manifest {dataset_prefix}"
    )


def check_corpus_sizes(dataset_prefix: str | Path) -> str:
    """Quick check at the start of a training: manifest present, .bin and .idx of the sizes that it states.

    Returns the corpus hash: a SHA-256 over the recorded hashes of both files. It does not read the files; the full
    check is tools/verify_corpus.py. Raises InputError.
    """
    dataset_prefix = Path(dataset_prefix)
    manifest_path, content = find_corpus_manifest(dataset_prefix)
    names = [f"{dataset_prefix.name}.bin", f"{dataset_prefix.name}.idx"]
    for name in names:
        path = dataset_prefix.parent / name
        expected = content["bytes"].get(name)
        found = path.stat().st_size if path.is_file() else None
        if found is None or found != expected:
            state = "is missing" if found is None else f"has {found} bytes"
            raise InputError(f"{path}: {state}; {manifest_path.name} states {expected}: build the corpus again")
    return sha256_json([content["sha256"][name] for name in names])
