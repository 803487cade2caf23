"""Every answer of a model on disk as soon as it is there, so that a killed evaluation loses the last batch at most."""

import json
import os
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import parse_line

Answer = str | list  # a text, or [log-likelihood, whether greedy decoding gives it]


class AnswersLog:
    """answers.jsonl: a first line with what the answers depend on, then {"key", "answer", ...} a line.

    Opening cuts off a line that a kill has torn. Raises InputError when the file holds answers of another model, or is
    damaged before its last line.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self.answers = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115, it stays open
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self._file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write([{"identity": identity}])
            return
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_line(line)
                if number > 1:
                    self.answers[row["key"]] = row
            except (InputError, KeyError) as error:
                raise InputError(f"{path}:{number}: damaged ({error}); remove the file, or this line") from None
            if number == 1 and row.get("identity") != identity:
                raise InputError(f"{path}: holds answers of another model or setting; name another --output")

    def __contains__(self, key: str) -> bool:
        return key in self.answers

    def add(self, rows: list[dict]) -> None:
        """Write rows {"key", "answer", ...} to the disk, then know them."""
        self._write(rows)
        self.answers |= {row["key"]: row for row in rows}

    def _write(self, rows: list[dict]) -> None:
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
