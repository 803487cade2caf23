"""tools/evaluate.py killed for real, while a model of transformers answers."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.exam_files import page, write_ceval, write_lines
from support.exam_hf import write_answering_hf
from support.paths import ROOT

from megatron_chimed.jsonl import read_json, sha256_file

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line without --output: 96 answers, two at a time."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_answering_hf(folder / "hf", positions=640)
    pages = write_lines(folder / "chimed.jsonl", [page(number) for number in range(48)])
    tasks = [f"ceval={write_ceval(folder / 'ceval', count=6)}", f"chimed={pages}"]
    return [sys.executable, "tools/evaluate.py", "--model", f"hf:{folder / 'hf'}", "--runs", "1", "--batch-size", "2",
            "--max-new-tokens", "24", "--temperature", "0.8", "--tasks", *tasks]  # fmt: skip


def start(command, output):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, "--output", str(output)], cwd=ROOT, env=environment, **streams)


def answers(output) -> list[str]:
    """The whole lines of the log."""
    log = output / "answers.jsonl"
    return [line for line in log.read_text("utf-8").splitlines(True) if line.endswith("\n")] if log.exists() else []


def test_an_evaluation_killed_while_it_answers_keeps_every_answer_and_ends_as_if_it_had_not_been(command, tmp_path):
    assert start(command, tmp_path / "whole").wait(timeout=300) == 0
    process = start(command, tmp_path / "killed")
    deadline = time.monotonic() + 240
    while len(answers(tmp_path / "killed")) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = answers(tmp_path / "killed")
    assert 20 <= len(kept) < len(answers(tmp_path / "whole")) and not (tmp_path / "killed/results.json").exists()
    assert start(command, tmp_path / "killed").wait(timeout=300) == 0
    assert answers(tmp_path / "killed")[: len(kept)] == kept
    assert sorted(answers(tmp_path / "killed")) == sorted(answers(tmp_path / "whole"))
    assert read_json(tmp_path / "killed/results.json") == read_json(tmp_path / "whole/results.json")
    for path in (tmp_path / "whole/samples").iterdir():
        assert sha256_file(path) == sha256_file(tmp_path / "killed/samples" / path.name), path.name
    assert json.loads(kept[1])["answer"]
