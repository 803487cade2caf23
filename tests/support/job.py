"""Real training jobs for tests: small corpora, a small model, ranks, and what the run left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_chimed.jsonl import sha256_file
from megatron_chimed.training.runlog import read_log
from support.forked import ON_CPU, Forked
from support.paths import ROOT
from support.ranks import start as start_ranks

ON_GPU = {name: value for name, value in ON_CPU.items() if name != "CUDA_VISIBLE_DEVICES"}
VOCAB = 250

MODEL = {
    "num-layers": 2,
    "hidden-size": 64,
    "num-attention-heads": 4,
    "group-query-attention": True,
    "num-query-groups": 2,
    "ffn-hidden-size": 160,
    "max-position-embeddings": 64,
    "position-embedding-type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "disable-bias-linear": True,
    "untie-embeddings-and-output-weights": True,
    "attention-dropout": 0.0,
    "hidden-dropout": 0.0,
    "tokenizer-type": "NullTokenizer",
    "vocab-size": VOCAB,
    "make-vocab-size-divisible-by": 64,
}
STAGE = {
    "split": "80,20,0",
    "seq-length": 64,
    "micro-batch-size": 2,
    "global-batch-size": 4,
    "train-iters": 10,
    "lr": 1e-3,
    "lr-decay-style": "constant",
    "clip-grad": 1.0,
    "weight-decay": 0.1,
    "eval-interval": 5,
    "eval-iters": 1,
    "log-interval": 1,
    "save-interval": 100,
    "seed": 7,
}


def write_corpus(folder: Path, num_documents: int = 120, seed: int = 0, name: str = "corpus", ids: int = VOCAB) -> Path:
    """A corpus with learnable structure (each document counts on from a random id) and its manifest; its prefix."""
    random = np.random.default_rng(seed)
    prefix = folder / f"{name}_text_document"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for _ in range(num_documents):
        length = int(random.integers(5, 120))
        tokens = (int(random.integers(ids)) + np.arange(length) * int(random.integers(1, 4))) % ids
        builder.add_document(tokens.tolist(), [length])
    builder.finalize(f"{prefix}.idx")
    files = [prefix.with_name(f"{prefix.name}.{suffix}") for suffix in ("bin", "idx")]
    manifest = {
        "bytes": {file.name: file.stat().st_size for file in files},
        "sha256": {file.name: sha256_file(file) for file in files},
        "vocab_size": ids,
    }
    (folder / f"{name}.manifest.json").write_text(json.dumps(manifest))
    return prefix


class Job:
    """One configuration of a training, in a folder; `run` it as often as wanted."""

    def __init__(
        self,
        folder: Path,
        model: dict | None = None,
        stage: dict | None = None,
        chimed: dict | None = None,
        name: str = "pretrain",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.model, self.stage = folder / "model.yaml", folder / "stage.yaml"
        self.model.write_text(yaml.safe_dump({"megatron": MODEL | (model or {})}))
        self.stage.write_text(yaml.safe_dump({"megatron": STAGE | (stage or {}), "chimed": chimed or {}}))

    def start(self, *overrides: object, ranks: int = 2) -> Forked:
        """Start the ranks in a session of their own, output to the job's folder."""
        return start_ranks([self.name, self.model, self.stage, *overrides], ranks, self.folder / "output.txt")

    def run(self, *overrides: object, ranks: int = 2) -> str:
        """Run to the end and return the output; the test fails when the job does."""
        process = self.start(*overrides, ranks=ranks)
        try:
            code = process.wait(timeout=240)
        except BaseException:
            kill(process)
            raise
        output = self.output()
        assert code == 0, output[-4000:]
        return output

    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def run_until(self, iteration: int, save: Path, delay: float, *overrides: object, ranks: int = 2) -> None:
        """Start, wait until `iteration` is in the loss log and `delay` seconds more, then kill -9 every process."""
        process = self.start(*overrides, ranks=ranks)
        deadline = time.monotonic() + 240
        while not any(int(row["iteration"]) >= iteration for row in read_log(save / "loss.csv")):
            assert process.poll() is None, f"the job ended before iteration {iteration}:\n{self.output()[-4000:]}"
            assert time.monotonic() < deadline, self.output()[-4000:]
            time.sleep(0.01)
        time.sleep(delay)
        kill(process)


class LaunchedJob(Job):
    """The same through launch/torchrun.sh, with ON_CPU or ON_GPU in its environment."""

    environment = ON_CPU

    def start(self, *overrides: object, ranks: int = 2) -> subprocess.Popen:
        """Start the launcher in a session of its own, output to the job's folder."""
        command = ["launch/torchrun.sh", self.name, self.model, self.stage, *overrides]
        with open(self.folder / "output.txt", "a") as output:
            return subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env=os.environ | self.environment | {"NPROC": str(ranks), "PYTHON": sys.executable},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def kill(process: Forked | subprocess.Popen) -> None:
    """kill -9 to a job and all that it started; torchrun gives each rank a session of its own, so that a signal to the
    launcher's group would not reach them."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listing.splitlines())}
    doomed = {process.pid}
    while more := {pid for pid, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def figures(save: Path, split: str = "train", name: str = "lm loss") -> list[tuple[str, str, str]]:
    """(iteration, value, grad norm) rows of one figure of a run as written, all digits."""
    return [
        (row["iteration"], row["value"], row["grad_norm"])
        for row in read_log(save / "loss.csv")
        if row["split"] == split and row["name"] == name
    ]
