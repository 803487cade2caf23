"""Two nodes on the loopback device: the launchers of a cluster with real ranks, Slurm's commands played by scripts."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from support.job import ROOT, Job, figures, write_corpus
from support.ranks import ON_CPU

from megatron_chimed.checkpoints import latest_iteration

# As Slurm's own, it passes SIGUSR1 on to the tasks; SIGTERM would kill them.
SRUN = """\
[ "$1" = --kill-on-bad-exit=1 ] && shift
trap 'kill -USR1 $first $second' USR1
trap 'kill -KILL $first $second' TERM
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
for task in $first $second; do
  while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
  [ $code = 0 ] || worst=$code
done
exit ${worst:-0}
"""
SCONTROL = 'echo "scontrol $*" >&2\necho 127.0.0.1\necho elsewhere\n'


def stand_in(path: Path, text: str) -> None:
    """A script that plays one of Slurm's commands."""
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def start(job: Job, save: Path) -> subprocess.Popen:
    """The batch script of a job of two nodes, of one rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "MASTER_PORT": port}
    slurm |= {"PATH": f"{job.folder}:{os.environ['PATH']}", "NPROC": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = ["pretrain", job.model, job.stage, "--save", save]
    return subprocess.Popen(
        ["sh", "launch/slurm.sbatch", *map(str, words)],
        cwd=ROOT,
        env=os.environ | ON_CPU | slurm,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=open(job.folder / "output.txt", "a"),  # noqa: SIM115  the child's
    )


def test_a_slurm_job_trains_one_model_on_two_nodes_and_continues_when_it_is_queued_again(tmp_path):
    stage = {"data-path": str(write_corpus(tmp_path)), "tensor-model-parallel-size": 2, "train-iters": 30}
    job, save = Job(tmp_path, stage=stage), tmp_path / "run"
    stand_in(tmp_path / "srun", SRUN)
    stand_in(tmp_path / "scontrol", SCONTROL)
    first = start(job, save)
    deadline = time.monotonic() + 240
    while not figures(save):
        assert first.poll() is None and time.monotonic() < deadline, job.output()[-4000:]
        time.sleep(0.02)
    first.send_signal(signal.SIGUSR1)  # five minutes before the time limit
    assert first.wait(timeout=240) == 0, job.output()[-4000:]
    output = job.output()
    assert "show hostnames n[1-2]" in output and "on 2 x CPU (TP 2 x PP 1 x DP 1, gloo)" in output
    saved = latest_iteration(save)
    assert 1 <= saved < 30 and f"stopped by a signal after iteration {saved}: saved" in output
    assert output.rstrip().endswith("scontrol requeue 1")
    assert start(job, save).wait(timeout=240) == 0, job.output()[-4000:]
    assert [int(iteration) for iteration, _, _ in figures(save)] == list(range(1, 31))
