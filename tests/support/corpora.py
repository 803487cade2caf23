"""Small corpora for the tests of the corpus builder: texts, a tokenizer, input files, calls of the tool."""

import contextlib
import gzip
import io
import json
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_chimed.corpus.builder import RunOptions, TextOptions, build_corpus
from megatron_chimed.text.tokenizer import SentencePieceTokenizer
from megatron_chimed.text.tokenizer_training import train_sentencepiece
from support.paths import TOOLS

WORDS = ["慢性", "胃炎", "患者", "建议", "检查", "血压", "头痛", "发热", "服用", "医生", "insulin", "37.5℃", "三次"]


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of 3 to 40 words."""
    draw = random.Random(seed)
    return [f"{n}号，" + "".join(draw.choices(WORDS, k=draw.randint(3, 40))) + "。" for n in range(count)]


def write_model(folder: Path) -> Path:
    """A SentencePiece model of some hundred pieces."""
    path = folder / "tokenizer.model"
    path.write_bytes(train_sentencepiece(make_texts(300), 420))
    return path


def to_lines(rows: list) -> bytes:
    """Rows as JSON lines; bytes stand for themselves."""
    lines = (row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows)
    return b"".join(line + b"\n" for line in lines)


def write_rows(path: Path, rows: list) -> Path:
    """Write `to_lines`, compressed if the name ends in .gz."""
    path.write_bytes(gzip.compress(to_lines(rows)) if path.suffix == ".gz" else to_lines(rows))
    return path


def build(inputs: list[Path], prefix: Path, model: Path, text: TextOptions | None = None, **run) -> dict:
    """`build_corpus` in small batches, without a bar, in this process unless workers are asked for."""
    run = RunOptions(**{"batch_bytes": 2000, "progress": False, **run})
    tokenizer = SentencePieceTokenizer(model)
    return build_corpus([str(path) for path in inputs], prefix, tokenizer, text or TextOptions(), run, str(model))


def files_of(prefix: Path, *suffixes: str) -> dict[str, bytes]:
    """Contents of the outputs of a prefix by what follows it; with suffixes, only names that end in one of them."""
    found = sorted(prefix.parent.glob(f"{prefix.name}[._]*"))
    wanted = [path for path in found if path.is_file() and (not suffixes or path.name.endswith(suffixes))]
    return {path.name.removeprefix(prefix.name): path.read_bytes() for path in wanted}


def command(tool: str, *arguments) -> list[str]:
    """The command line of a tool of this project."""
    return [sys.executable, str(TOOLS / tool), *map(str, arguments)]


def call(tool: str, *arguments) -> subprocess.CompletedProcess:
    """Run a tool to its end, or fail after a minute."""
    return subprocess.run(command(tool, *arguments), capture_output=True, text=True, timeout=60)


def call_here(tool: str, *arguments) -> subprocess.CompletedProcess:
    """The same in this process, for cases of which each would wait for Python and its libraries to start; what is not
    caught inside the tool is raised. `call` shows that a tool works on its own."""
    words = command(tool, *arguments)[1:]
    with io.StringIO() as out, io.StringIO() as err, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            runpy.run_path(words[0], run_name="__main__")
        return subprocess.CompletedProcess(words, end.value.code or 0, out.getvalue(), err.getvalue())
