"""Two nodes on the loopback device: the launchers of a cluster with real ranks, Slurm's commands played by scripts.

tests/slurm has the same on a real Slurm.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.fake_srun import processes
from support.forked import ON_CPU
from support.job import ROOT, Job, figures, kill, write_corpus
from support.paths import TESTS

from megatron_chimed.checkpoints import latest_iteration

SCONTROL = 'echo "scontrol $*" >&2\necho 127.0.0.1\necho elsewhere\n'
REQUEUED = "slurm.sbatch: the job is queued again"


def stand_in(path: Path, text: str) -> None:
    """A script that plays one of Slurm's commands."""
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def start(job: Job, save: Path, *words: object) -> subprocess.Popen:
    """The batch script of a job of two nodes, of one rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "MASTER_PORT": port}
    slurm |= {"PATH": f"{job.folder}:{os.environ['PATH']}", "NPROC": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = ["sh", str(ROOT / "launch/slurm.sbatch"), "pretrain", job.model, job.stage, "--save", save, *words]
    (job.folder / "launch").is_symlink() or (job.folder / "launch").symlink_to(ROOT / "launch")
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=job.folder,
        env=os.environ | ON_CPU | slurm | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=open(job.folder / "output.txt", "a"),  # noqa: SIM115  the child's
    )


def until_it_trains(process: subprocess.Popen, job: Job, save: Path) -> None:
    deadline = time.monotonic() + 240
    while not figures(save):
        assert process.poll() is None and time.monotonic() < deadline, job.output()[-4000:]
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A training of TP 2, beside the stand-ins."""
    stage = {"data-path": str(write_corpus(tmp_path)), "tensor-model-parallel-size": 2, "train-iters": 30}
    stand_in(tmp_path / "srun", f'exec "{sys.executable}" "{TESTS}/support/fake_srun.py" "$@"\n')
    stand_in(tmp_path / "scontrol", SCONTROL)
    return Job(tmp_path, stage=stage)


def test_a_slurm_job_trains_one_model_on_two_nodes_and_continues_when_it_is_queued_again(job, tmp_path):
    save = tmp_path / "run"
    first = start(job, save)
    until_it_trains(first, job, save)
    first.send_signal(signal.SIGUSR1)  # five minutes before the time limit
    assert first.wait(timeout=240) == 0, job.output()[-4000:]
    output = job.output()
    assert "show hostnames n[1-2]" in output and "on 2 x CPU (TP 2 x PP 1 x DP 1, gloo)" in output
    saved = latest_iteration(save)
    assert 1 <= saved < 30 and f"stopped by a signal after iteration {saved}: saved" in output
    assert "scontrol requeue 1" in output and output.rstrip().endswith(REQUEUED)
    assert start(job, save).wait(timeout=240) == 0, job.output()[-4000:]
    assert [int(iteration) for iteration, _, _ in figures(save)] == list(range(1, 31))
    assert job.output().count(REQUEUED) == 1 and not list(tmp_path.glob(".slurm-*"))


@pytest.mark.real_processes
def test_a_job_whose_tasks_are_told_to_stop_is_queued_again(job, tmp_path):
    """Preempted with grace, Slurm sends SIGTERM to every process of the step, and nothing to the batch script."""
    save = tmp_path / "run"
    process = start(job, save)
    try:
        until_it_trains(process, job, save)
        (srun,) = (pid for pid in processes(process.pid) if b"fake_srun.py" in cmdline(pid))
        for pid in processes(srun)[:-1]:
            os.kill(pid, signal.SIGTERM)
        assert process.wait(timeout=240) == 0, job.output()[-4000:]
    finally:
        kill(process)
    assert f"stopped by a signal after iteration {latest_iteration(save)}: saved" in job.output()
    assert job.output().rstrip().endswith(REQUEUED)


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data-path", "nosuch/corpus"), "nosuch/corpus: no manifest lists corpus.bin"),
        (("--lr", "1e30", "--lr-warmup-iters", "5"), "is not a finite number"),
    ],
    ids=["bad input", "diverged"],
)
def test_a_failure_ends_the_job_with_its_code_and_is_not_queued_again(job, tmp_path, words, said):
    process = start(job, tmp_path / "run", *words)
    try:
        assert process.wait(timeout=240) == 1, job.output()[-4000:]
    finally:
        kill(process)
    assert said in job.output() and "requeue" not in job.output(), job.output()[-4000:]
