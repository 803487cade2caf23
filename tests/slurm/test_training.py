"""Trainings on two nodes of a real Slurm: they end once or are queued again, with the losses of one machine.

The first line of each test is its row of the table in docs/slurm.md.
"""

import fcntl
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from support.job import LaunchedJob
from support.slurm_cluster import until
from support.slurm_training import ITERATIONS, Training, losses

from megatron_chimed.checkpoints import latest_iteration

REQUEUED = "slurm.sbatch: the job is queued again"
HIGH = ("--partition=high", "--nodes=2", "--exclusive", "--parsable")


@pytest.fixture
def training(slurm, reference, tmp_path) -> Training:
    return Training(slurm, tmp_path, reference)


def processes(*marks: str) -> list[int]:
    """Process ids of those whose command line and environment have all marks."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "cmdline").read_bytes() + b"\0" + (path / "environ").read_bytes()
        except OSError:
            continue
        if all(mark.encode() in text for mark in marks):
            found.append(int(path.name))
    return found


def preempt(training: Training) -> None:
    """A short job of a higher partition on both nodes."""
    training.start(["sbatch", *HIGH, "--output=/dev/null", "--wrap", "sleep 3"])


@pytest.mark.parametrize("nodes", [1, 2])
def test_one_model_on(training, nodes):
    """two ranks: COMPLETED, losses as by torchrun.sh, on nodes"""
    training.ended(training.submit(nodes=nodes))
    assert training.is_exact()


def test_two_ranks_on_each_of_two_nodes(training, tmp_path):
    """2 nodes, 2 ranks each: losses as by torchrun.sh with 4 ranks"""
    words = ("--train-iters", "20")
    training.ended(training.submit(words=words, NPROC="2"))
    other = LaunchedJob(tmp_path / "other", stage=training.reference.stage)
    other.run("--save", tmp_path / "other/run", *words, ranks=4)
    assert losses(training.save) == losses(tmp_path / "other/run") != []


def test_the_time_limit(training):
    """before the time limit, 2 nodes: saved, queued again, continues"""
    job = training.submit("--time=1", "--signal=B:USR1@10", words=("--train-iters", "20000"))
    training.slurm.restarted(job)
    saved = latest_iteration(training.save)
    time.sleep(15)
    training.until(saved + 1, job)
    assert REQUEUED in training.log() and f"stopped by a signal after iteration {saved}: saved" in training.log()
    assert int(re.search(r"waiting up to (\d+) s", training.log())[1]) <= 45  # what was left of the minute
    training.slurm.command("scancel", job)
    found = [row for row in losses(training.save) if int(row[0]) <= ITERATIONS]
    assert found == training.reference.losses[: len(found)] and int(found[-1][0]) == ITERATIONS


@pytest.mark.parametrize("nodes", [1, 2])
def test_preempted_with_grace(training, nodes):
    """preempted, GraceTime=60: saved, queued again, same losses, on nodes"""
    job = training.submit(nodes=nodes)
    training.until(4, job)
    preempt(training)
    training.ended(job, restarts=1)
    assert REQUEUED in training.log() and "stopped by a signal after iteration" in training.log()
    assert training.is_exact()


def test_preempted_by_the_users_signal(training):
    """preempted, preempt_send_user_signal, 2 nodes: saved, queued again, same losses"""
    training.slurm.configure("SlurmctldParameters=preempt_send_user_signal")
    training.slurm.command("scontrol", "reconfigure")
    try:
        job = training.submit()
        training.until(4, job)
        preempt(training)
        training.ended(job, restarts=1)
    finally:
        training.slurm.configure()
        training.slurm.command("scontrol", "reconfigure")
    assert "slurm.sbatch: waiting for a save" in training.log() and REQUEUED in training.log()
    assert training.is_exact()


def test_preempted_without_grace(training):
    """preempted, GraceTime=0, 2 nodes: killed, queued again by Slurm, from its newest checkpoint, same losses"""
    job = training.submit("--partition=nograce")
    training.until(12, job)
    preempt(training)
    training.ended(job, restarts=1)
    assert training.is_exact()


def test_scontrol_requeue(training):
    """scontrol requeue, 2 nodes: queued again, from its newest checkpoint, same losses"""
    job = training.submit()
    training.until(12, job)
    training.slurm.command("scontrol", "requeue", job)
    training.ended(job, restarts=1)
    assert training.is_exact()


@pytest.mark.parametrize("signals", [1, 2])
def test_usr1_to_the_step(training, signals):
    """scancel --signal=USR1, 2 nodes: saved, queued again, same losses; signals"""
    job = training.submit()
    training.until(4, job)
    for _ in range(signals):
        training.slurm.command("scancel", "--signal=USR1", job)
    training.slurm.restarted(job)
    training.ended(job, restarts=1)
    assert training.log().count(REQUEUED) == 1
    assert training.is_exact()


def test_sbatch_wait_over_a_restart(training):
    """sbatch --wait over a restart: waits on, code 0, same losses"""
    command = training.sbatch("--wait")
    waiting = subprocess.Popen(
        command, cwd=training.folder, env=training.environment, stdout=subprocess.PIPE, text=True
    )
    with waiting:
        job = waiting.stdout.readline().strip()
        training.until(4, job)
        training.slurm.command("scancel", "--signal=USR1", job)
        assert waiting.wait(timeout=200) == 0
    training.ended(job, restarts=1)
    assert training.is_exact()


def test_no_requeue(training):
    """--no-requeue, USR1 to the batch shell, 1 node: saved, FAILED 75, says that it is not queued again"""
    job = training.submit("--no-requeue", nodes=1)
    training.until(4, job)
    training.slurm.command("scancel", "--batch", "--signal=USR1", job)
    training.ended(job, "FAILED", "75:0")
    assert REQUEUED not in training.log() and "not queued again (see above)" in training.log()


def test_a_finished_training(training):
    """USR1 when all is trained: COMPLETED, not queued again; and a job for it ends at once"""
    job = training.submit(words=("--train-iters", "20"))
    training.until(20, job)
    training.slurm.command("scancel", "--batch", "--signal=USR1", job)
    training.ended(job)
    assert REQUEUED not in training.log()
    training.ended(training.submit(words=("--train-iters", "20")))
    assert "run is trained to iteration 20" in training.log()


def test_scancel(training):
    """scancel, 2 nodes: CANCELLED, nothing left; submitted anew it continues, same losses"""
    job = training.submit()
    training.until(12, job)
    training.slurm.command("scancel", job)
    assert training.slurm.wait(job)["JobState"] == "CANCELLED"
    time.sleep(12)
    assert not processes("megatron_chimed", f"SLURM_JOB_ID={job}") and REQUEUED not in training.log()
    training.ended(training.submit())
    assert training.is_exact()


def test_a_killed_rank(training):
    """a rank killed with -9, 2 nodes: FAILED 137 once, all ended"""
    job = training.submit()
    training.until(4, job)
    rank = processes("megatron_chimed.training.rank", f"SLURM_JOB_ID={job}", "\0RANK=1")
    os.kill(min(rank), signal.SIGKILL)
    training.ended(job, "FAILED", "137:0")
    assert "before the first iteration" not in training.log()
    assert not processes("megatron_chimed", f"SLURM_JOB_ID={job}")


def test_a_dead_node(training):
    """a node dies: queued again by Slurm, continues when the node is back, same losses"""
    job = training.submit()
    training.until(12, job)
    tasks = processes(f"SLURM_JOB_ID={job}", "SLURM_NODEID=1")
    steps = {parent for parent in map(parent_of, tasks) if Path(f"/proc/{parent}/comm").read_text() == "slurmstepd\n"}
    assert len(steps) == 1
    for pid in (training.slurm.daemons["node2"].pid, *steps, *tasks):
        kill(pid)
    state = ("sinfo", "--noheader", "--nodes=node2", "--format=%T")
    until(lambda: training.slurm.command(*state).startswith("down"), "node2 down", 120)
    training.slurm.start_node("node2")
    training.ended(job, restarts=1)
    assert training.is_exact()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


FAULTS = {
    "bad path": (("--data-path", "nosuch/corpus"), "no manifest lists corpus.bin"),
    "a batch that does not divide": (("--global-batch-size", "3"), "megatron_chimed: error: "),
    "NaN": (("--lr", "1e30", "--lr-warmup-iters", "5"), "is not a finite number"),
}


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure(training, fault, nodes):
    """a failure: FAILED 1 once; which, on nodes"""
    words, said = FAULTS[fault]
    training.ended(training.submit(nodes=nodes, words=words), "FAILED", "1:0")
    assert said in training.log() and REQUEUED not in training.log()


def test_a_failure_that_is_waited_for(training):
    """bad input, 2 nodes, sbatch --wait: ends with 1"""
    done = training.run(training.sbatch("--wait", words=FAULTS["bad path"][0]))
    assert done.returncode == 1, done.stderr + training.log()[-3000:]


def test_a_locked_save(training):
    """a locked --save, 2 nodes: FAILED 1 once, names who holds it"""
    training.save.mkdir()
    with open(training.save / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        training.ended(training.submit(), "FAILED", "1:0")
    assert "another job is running there" in training.log()


def test_starts_that_lead_nowhere(training):
    """a job that starts from one iteration again and again: FAILED 1 at the fourth start"""
    job = training.submit(words=("--save-interval", "1000"))
    for start in (1, 2, 3):
        training.slurm.wait(job, ("RUNNING",))
        ranks = ("megatron_chimed.training.rank", f"SLURM_JOB_ID={job}", "\0RANK=")
        until(lambda: processes(*ranks), "ranks")  # noqa: B023  called here
        training.slurm.command("scontrol", "requeue", job)
        training.slurm.restarted(job, start)
    training.ended(job, "FAILED", "1:0", restarts=3)
    assert "has started 3 times from iteration 0 and saved nothing since" in training.log()


def test_a_name_that_has_no_address(training):
    """a MASTER_ADDR without an address, 2 nodes: FAILED 1 once, says so"""
    training.ended(training.submit(MASTER_ADDR="no.such.invalid"), "FAILED", "1:0")
    assert "MASTER_ADDR 'no.such.invalid' has no address on" in training.log()


def test_a_meeting_place_that_is_of_no_use(training):
    """the port of the job's number taken, the first node's name without an address: others, 2 nodes, same losses"""
    for name, text in (("getent", "exit 2"), ("show", 'echo "at $MASTER_ADDR $MASTER_PORT"; exec "$@"')):
        (training.folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (training.folder / name).chmod(0o755)
    path = f"{training.folder}:{os.environ['PATH']}"
    job = training.submit("--hold", PATH=path, IN_CONTAINER=str(training.folder / "show"))
    port = 20000 + int(job) % 10000
    with socket.create_server(("", port)):
        training.slurm.command("scontrol", "release", job)
        training.ended(job)
    assert training.log().count(f"at 127.0.0.1 {port + 1}\n") == 2 and training.is_exact()


def test_a_log_for_each_node(training):
    """NODE_LOGS: a log for each node"""
    job = training.submit(words=("--train-iters", "2"), NODE_LOGS="logs")
    training.ended(job)
    assert sorted(path.name for path in (training.folder / "logs").iterdir()) == [
        f"megatron_chimed-{job}-node{number}.log" for number in (0, 1)
    ]
