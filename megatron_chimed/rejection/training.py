"""The training of a round: the stage `sft` or `dpo` on packed rows, started as a job of its own."""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from megatron_chimed.checkpoints import latest_iteration
from megatron_chimed.errors import STOPPED_FILE, InputError, Stopped
from megatron_chimed.jsonl import write_json
from megatron_chimed.rejection.config import LoopConfig

ENDING = 60  # seconds for the ranks of a killed job to end


def fine_tune(config: LoopConfig, start: str | Path, packed: Path, folder: Path, inputs_hash: str) -> int:
    """Fine-tune the checkpoint of `start` on packed rows into `folder`; returns the iterations that were trained.

    What is there of an interrupted training on the same data is continued, of another one removed. The job ends with
    this process, however that ends. Its output is appended to FOLDER.log. Raises InputError when it fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    marker = folder.with_name(f"{folder.name}.made_from.json")
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for(lock, folder)
        _begin(marker, folder, inputs_hash)
        _launch(config, start, packed, folder, lock)
    finally:
        os.close(lock)
    return latest_iteration(folder)


def _begin(marker: Path, folder: Path, inputs_hash: str) -> None:
    """Remove a training on something else, and write down what this one is made from."""
    content = f'"{inputs_hash}"\n'
    if not marker.is_file() or marker.read_text() != content:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(marker, inputs_hash)


def _wait_for(lock: int, folder: Path) -> None:
    """Take the lock that a training holds until its launcher has ended. Raises InputError when it does not end."""
    deadline = time.monotonic() + ENDING
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InputError(f"{folder}: a training of a job that was killed is still running; end it") from None
            time.sleep(0.2)


def _launch(config: LoopConfig, start: str | Path, packed: Path, folder: Path, lock: int) -> None:
    """Run the launcher to its end; it inherits the lock, and its input is a pipe that this process holds open."""
    paths, options = config.paths, config.training
    kind = "HuggingFaceTokenizer" if Path(paths.tokenizer).is_dir() else "SentencePieceTokenizer"
    launcher = shlex.split(options.launcher) or [sys.executable, "-m", "megatron_chimed", "train"]
    command = [*launcher, options.method, paths.model, paths.stage, "--load", str(start), "--finetune"]
    command += ["--save", str(folder), "--train-data-path", str(packed)]
    command += ["--tokenizer-type", kind, "--tokenizer-model", paths.tokenizer]
    environment = {"NPROC": str(options.ranks), "PYTHON": sys.executable, "MEGATRON_CHIMED_END_WITH_STDIN": "1"}
    environment[STOPPED_FILE] = ""  # the loop's own: a training that was stopped is no training that has ended
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=output, pass_fds=(lock,)
        )
        try:
            with process.stdin:
                code = process.wait()
        except Stopped:  # the end of its input has told it
            process.wait()
            raise
    if code:
        raise InputError(f"{folder.name}: the training ended with code {code}; its message stands above, more in {log}")
