"""Two nodes on the loopback device: the launchers of a cluster with real ranks, Slurm's commands played by scripts."""

import os
import socket
import subprocess
from pathlib import Path

from job import ROOT, Job, figures, write_corpus
from ranks import ON_CPU

SRUN = """\
[ "$1" = --kill-on-bad-exit=1 ] && shift
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""
SCONTROL = 'echo "$*" >&2\necho 127.0.0.1\necho elsewhere\n'


def stand_in(path: Path, text: str) -> None:
    """A script that plays one of Slurm's commands."""
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def test_a_slurm_job_trains_one_model_on_two_nodes(tmp_path):
    stage = {"data-path": str(write_corpus(tmp_path)), "tensor-model-parallel-size": 2, "train-iters": 3}
    job = Job(tmp_path, stage=stage)
    stand_in(tmp_path / "srun", SRUN)
    stand_in(tmp_path / "scontrol", SCONTROL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "MASTER_PORT": port}
    slurm |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NPROC": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = ["pretrain", job.model, job.stage, "--save", tmp_path / "run"]
    done = subprocess.run(
        ["sh", "launch/slurm.sbatch", *map(str, words)],
        cwd=ROOT,
        env=os.environ | ON_CPU | slurm,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "show hostnames n[1-2]" in done.stderr and "on 2 x CPU (TP 2 x PP 1 x DP 1, gloo)" in done.stderr
    assert [iteration for iteration, _, _ in figures(tmp_path / "run")] == ["1", "2", "3"]
