"""Answers that were paid for, kept on disk one by one: a killed run, started again, asks for none of them twice."""

import fcntl
import json
import os
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from megatron_chimed.api.client import ChatApi, ChatRequest, Completion
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import sha256_json

Key = tuple[str | int, ...]


class ChatLog:
    """Completions by key, in a file that is only ever appended to. Close it, or use it in a with statement.

    A line is ``{"key": ["g1", "gpt-4"], "request": SHA-256, "completion": {...}}``. `request` stands for server, model,
    messages and options, so that an answer to another question is not taken for this one's; of two lines with one key
    the later counts. What a kill has left of a last line is cut off. Raises InputError when a line before it is
    damaged, or another process has the file open.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115, closed by close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._known, end = _read(path)
            self._file.truncate(end)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"{path}: another process is writing it; wait for it or name another output") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ChatLog":
        """The log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file, and let another process have it."""
        self._file.close()

    def find(self, key: Key, request: str) -> Completion | None:
        """The completion of this key, if it answers this request (`fingerprint`)."""
        found, completion = self._known.get(key, (None, None))
        return completion if found == request else None

    def add(self, key: Key, request: str, completion: Completion) -> None:
        """Keep a completion: when this returns, neither a kill nor a power cut can lose it."""
        row = {"key": list(key), "request": request, "completion": asdict(completion)}
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._known[key] = (request, completion)


def fingerprint(api: ChatApi, request: ChatRequest) -> str:
    """Hash of all that an answer depends on: server, model, messages, options."""
    return sha256_json([api.base_url, api.model, request.messages, dict(request.options)])


def complete_once(api: ChatApi, requests: Iterable[ChatRequest], log: ChatLog) -> Iterator[tuple[Hashable, Completion]]:
    """As `ChatApi.complete_all`, with what is in the log taken from there, and each new answer put into it first.

    Keys are tuples of strings and whole numbers, each given once. What failed is not kept, as it was not paid for, so
    the next run tries it again; a refusal and an empty answer are answers.
    """
    fresh: dict[Key, ChatRequest] = {}
    prints: dict[Key, str] = {}
    for request in requests:
        assert request.key not in prints, f"key {request.key} given twice"
        prints[request.key] = fingerprint(api, request)
        if known := log.find(request.key, prints[request.key]):
            yield request.key, known
        else:
            fresh[request.key] = request
    for key, completion in api.complete_all(fresh.values()):
        if not completion.failed:
            log.add(key, prints[key], completion)
        yield key, completion


def _read(path: Path) -> tuple[dict[Key, tuple[str, Completion]], int]:
    """(completions with the hash of their request by key, bytes up to the end of the last whole line)."""
    known, end = {}, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                key, completion = tuple(row["key"]), Completion(**row["completion"])
                known[key] = (row["request"], completion)
                whole = isinstance(completion.text, str | None) and isinstance(completion.reason, str)
            except (ValueError, RecursionError, LookupError, TypeError):
                whole = False
            if not whole:
                hint = "remove the line, and its answer is asked for again"
                raise InputError(f"{path}:{number}: not a kept answer; {hint}")
            end += len(line)
    return known, end
