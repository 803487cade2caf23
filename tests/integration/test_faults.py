"""One training, hit by one fault after another: each stops it as it should, and the next start continues exactly.

Every test starts the same command again, which recovers from the test before, and brings in its own fault; what has
been logged so far is compared in all digits with a run that nothing has disturbed. A test alone begins the run anew.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.forked import ON_CPU
from support.job import ROOT, Job, LaunchedJob, figures, kill, write_corpus
from support.paths import TESTS

from megatron_chimed import checkpoints
from megatron_chimed.checkpoints import resolve
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.training.runlog import read_log

# What makes recovery hard: dropout, bf16 with float32 main weights, sharded Adam moments.
MODEL = {"attention-dropout": 0.1, "hidden-dropout": 0.1}
STAGE = {
    "bf16": True,
    "use-distributed-optimizer": True,
    "tensor-model-parallel-size": 2,
    "save-interval": 3,
    "eval-interval": 4,
    "train-iters": 24,
    "distributed-timeout-seconds-after-init": 10,
}
CHIMED = {"isolate_documents": True, "keep_checkpoints": 3, "loss_limit": 5.0, "loss_limit_iterations": 2}
STOPPED = 75


class Run:
    """The disturbed run: starts, and what they have left."""

    def __init__(self, folder: Path, corpus: Path):
        self.save = folder / "run"
        self.job = LaunchedJob(folder, MODEL, STAGE | {"data-path": str(corpus)}, CHIMED)
        self.expected: Path | None = None

    def start(self, **fault) -> subprocess.Popen:
        """Start the training, with a fault in its ranks; its output is that of this start alone."""
        (self.job.folder / "output.txt").write_text("")
        self.log = self._log()
        if not fault:
            return self.job.start("--save", self.save)
        launch = [sys.executable, "-m", "megatron_chimed.training.launch", "--standalone", "--nproc-per-node", "2"]
        words = ["-m", "support.faulty_rank", "pretrain", self.job.model, self.job.stage, "--save", self.save]
        more = {"FAULT": json.dumps(fault), "PYTHONPATH": f"{ROOT}:{TESTS}"}
        return subprocess.Popen(
            [str(word) for word in (*launch, *words)],
            cwd=ROOT,
            env=os.environ | ON_CPU | more,
            stdin=subprocess.DEVNULL,
            stdout=open(self.job.folder / "output.txt", "a"),  # noqa: SIM115  the child's
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def latest(self) -> int:
        return checkpoints.latest_iteration(self.save)

    def _log(self) -> int | None:
        """What tells one start's loss.csv from another's, which takes its place."""
        path = self.save / "loss.csv"
        return path.stat().st_ino if path.exists() else None

    def wait_for(self, process: subprocess.Popen, iteration: int) -> None:
        """Wait until this start has logged an iteration."""
        deadline = time.monotonic() + 200
        rows: list[dict] = []
        while not any(int(row["iteration"]) >= iteration for row in rows):
            rows = read_log(self.save / "loss.csv") if self._log() != self.log else []
            assert process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def end(self, process: subprocess.Popen, seconds: int = 240) -> int:
        """The exit code; the test fails when the job hangs."""
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill(process)
            pytest.fail(f"the job hangs:\n{self.output()}")
        assert not ranks(self.save), "a rank is left"
        return code

    def output(self) -> str:
        return self.job.output()[-6000:]

    def says(self, pattern: str) -> re.Match:
        """The one line of the output that the project has written about the fault."""
        lines = [line for line in self.job.output().splitlines() if "megatron_chimed: " in line]
        found = [match for line in lines if (match := re.search(pattern, line))]
        assert len(found) == 1, self.output()
        return found[0]

    def is_exact(self) -> None:
        """What is logged up to the newest checkpoint is what the undisturbed run has logged."""
        for split in ("train", "valid"):
            until = self.latest()
            here = [row for row in figures(self.save, split) if int(row[0]) <= until]
            assert here == [row for row in figures(self.expected, split) if int(row[0]) <= until]


def ranks(save: Path) -> dict[int, int]:
    """{rank: process id} of the ranks that train into a folder."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [value for value in variables if value.startswith(b"RANK=")]
        if str(save).encode() in words and rank:
            found[int(rank[0][5:])] = int(folder.name)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    corpus = write_corpus(folder)
    undisturbed = Job(folder / "undisturbed", MODEL, STAGE | {"data-path": str(corpus)}, CHIMED)
    undisturbed.run("--save", folder / "undisturbed/run")
    run = Run(folder, corpus)
    run.expected = folder / "undisturbed/run"
    return run


def test_sigterm_to_the_launcher_saves_at_this_iteration_and_stops(run):
    process = run.start()
    run.wait_for(process, run.latest() + 1)
    process.send_signal(signal.SIGTERM)
    assert run.end(process) == STOPPED
    stopped_at = int(run.says(r"stopped by a signal after iteration (\d+): saved")[1])
    assert run.latest() == stopped_at == int(figures(run.save)[-1][0])
    run.is_exact()


def test_sigusr1_to_one_rank_alone_stops_all_at_the_same_iteration(run):
    before = run.latest()
    process = run.start()
    run.wait_for(process, before + 1)
    os.kill(ranks(run.save)[1], signal.SIGUSR1)
    assert run.end(process) == STOPPED
    run.says(f"stopped by a signal after iteration {run.latest()}: saved")
    assert run.latest() > before
    run.is_exact()


def test_a_gradient_that_is_no_number_stops_with_its_batch_and_the_weights_before_it(run):
    before = run.latest()
    process = run.start(kind="gradient", iteration=before + 2, rank=1)
    assert run.end(process) == 1
    said = run.says(
        rf"error: iteration {before + 2}: a gradient is not a finite number; its batch: (.+?) rows (.+?)\. "
    )
    folder = run.save / f"stopped_at_{before + 2:07d}"
    assert str(folder) in run.output() and "Traceback" not in run.output()
    facts = json.loads((folder / "batch.json").read_text())
    [(path, rows)] = facts["rows"].items()
    assert path == said[1] and ", ".join(map(str, rows)) == said[2] and len(rows) == 4
    with np.load(folder / "batch.npz", allow_pickle=False) as batch:
        assert batch["tokens"].shape == (4, 64) and (batch["tokens"][:, 1:] == batch["labels"][:, :-1]).all()
    weights = TorchDistCheckpoint(resolve(folder))
    table = weights.read("embedding.word_embeddings.weight", (0, 0), (250, 64))
    assert table.isfinite().all() and not any(name.startswith("optimizer") for name in weights.tensors)
    assert run.latest() < before + 2
    run.is_exact()


def test_a_disk_that_is_full_in_a_save_loses_nothing_older(run):
    before, there = run.latest(), checkpoints.iterations(run.save)
    process = run.start(kind="full", iteration=before + 1, rank=None)
    assert run.end(process) == 1
    run.says(r"error: .*iter_\d+: the checkpoint could not be written \(.+\); is the disk full\?")
    assert run.latest() == before and "Traceback" not in run.output()
    assert checkpoints.iterations(run.save) == there
    assert not any(checkpoints.find_damage(checkpoints.path_of(run.save, number)) for number in there)
    run.is_exact()


def test_a_killed_rank_ends_the_job(run):
    process = run.start()
    run.wait_for(process, run.latest() + 1)
    os.kill(ranks(run.save)[1], signal.SIGKILL)
    assert run.end(process) == 128 + signal.SIGKILL
    run.says("rank 1 ended with code -9")
    run.is_exact()


@pytest.mark.real_processes  # what is stopped is the rank
def test_a_rank_that_hangs_ends_the_job_within_the_time_limit(run):
    process = run.start()
    run.wait_for(process, run.latest() + 3)  # the limit of seconds holds from the second iteration on
    os.kill(ranks(run.save)[1], signal.SIGSTOP)
    assert run.end(process) == 1  # the limit, and torchrun's 30 s for a rank to end by itself
    run.says("error: another rank has ended or does not answer")
    run.is_exact()


def test_a_loss_that_explodes_stops_the_run(run):
    begin = run.latest() + 10
    begin += -begin % 3 + 1  # behind a checkpoint
    process = run.start(kind="explosion", iteration=begin, rank=None)
    assert run.end(process) == 1
    run.says(rf"error: iteration {begin + 1}: the loss is \d+\.?\d*, above 5 times its median of .+ for 2 iterations")
    assert run.latest() == begin - 1
    run.is_exact()


@pytest.mark.real_processes  # the refusal names the launcher
def test_a_damaged_checkpoint_is_set_aside_and_a_second_job_is_refused(run):
    """The last start of all, so it also finishes the run."""
    if len(checkpoints.iterations(run.save)) < 2:  # this test alone
        process = run.start()
        run.wait_for(process, 7)
        kill(process)
    damaged = checkpoints.path_of(run.save, run.latest())
    shard = max(damaged.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    seen = run.job.folder / "the other job was seen"
    process = run.start(kind="pause", iteration=run.latest(), rank=None, until=str(seen))
    run.wait_for(process, 1)  # the log is there, so its ranks are, and the lock
    other = LaunchedJob(run.job.folder / "other", MODEL, {}).start("--save", run.save)
    assert other.wait(timeout=120) == 1
    refusal = (run.job.folder / "other/output.txt").read_text()
    assert re.search(rf"error: {run.save}: another job is running there \(process {process.pid} on ", refusal)
    seen.touch()
    assert run.end(process) == 0
    run.says(rf"warning: {damaged}: {shard.name} has other bytes .* set aside as damaged_{damaged.name}, continuing")
    assert (run.save / f"damaged_{damaged.name}" / shard.name).is_file()
    assert run.latest() == 24
    run.is_exact()
    assert checkpoints.iterations(run.save) == [18, 21, 24]  # keep_checkpoints
