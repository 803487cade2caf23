"""Trainings as jobs of a real Slurm: a small one of TP 2, submitted with launch/slurm.sbatch, and what it logs."""

import os
import subprocess
import sys
from pathlib import Path

from megatron_chimed.training.runlog import read_log
from support.forked import ON_CPU
from support.job import Job, LaunchedJob, write_corpus
from support.paths import ROOT
from support.slurm_cluster import Cluster, until

ITERATIONS = 40
STAGE = {
    "tensor-model-parallel-size": 2,
    "train-iters": ITERATIONS,
    "global-batch-size": 4,
    "eval-interval": 20,
    "save-interval": 10,
}
SCRIPT = "launch/slurm.sbatch"
WITHOUT_GPUS = ("--gpus-per-node=0", "--time=10")


class Reference:
    """An undisturbed run by launch/torchrun.sh with two ranks, and its corpus."""

    def __init__(self, folder: Path):
        self.corpus = write_corpus(folder)
        self.stage = STAGE | {"data-path": str(self.corpus)}
        LaunchedJob(folder, stage=self.stage).run("--save", folder / "run")
        self.losses = losses(folder / "run")


class Training:
    """One training in a folder that looks like the project's; `submit` it as often as wanted."""

    def __init__(self, slurm: Cluster, folder: Path, reference: Reference, **stage: object):
        self.slurm, self.folder, self.reference = slurm, folder, reference
        self.save = folder / "run"
        as_project(folder)
        self.job = Job(folder, stage=reference.stage | stage)
        self.words = ("pretrain", "model.yaml", "stage.yaml", "--save", "run")

    def sbatch(self, *options: str, words: tuple[object, ...] = (), nodes: int = 2, **environment: str) -> list[str]:
        """The command, and it runs with `environment` besides."""
        self.environment = job_environment(self.slurm) | {"NPROC": "1" if nodes == 2 else "2"} | environment
        command = ["sbatch", f"--nodes={nodes}", "--parsable", "--output=log.txt", *WITHOUT_GPUS, *options, SCRIPT]
        return [*command, *self.words, *map(str, words)]

    def submit(self, *options: str, **more) -> str:
        """Submit it; the job's number."""
        return self.start(self.sbatch(*options, **more)).split(";")[0].strip()

    def start(self, command: list[str]) -> str:
        """Run a command in the folder; its output."""
        done = self.run(command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, command: list[str], seconds: int = 280) -> subprocess.CompletedProcess:
        """Run a command in the folder, with what `sbatch` has set."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
        )

    def rows(self) -> list[tuple[str, ...]]:
        """What is logged."""
        return losses(self.save)

    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, iteration: int, job: str) -> None:
        """Wait until an iteration is logged."""

        def holds() -> bool:
            state = self.slurm.show(job)["JobState"]
            assert state in ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING"), (
                f"{state}\n{self.log()[-3000:]}"
            )
            return any(int(row[0]) >= iteration for row in losses(self.save))

        until(holds, f"iteration {iteration}", 120)

    def ended(self, job: str, state: str = "COMPLETED", code: str = "0:0", restarts: int = 0) -> None:
        """Wait for the end of a job; it must be the one that is expected."""
        found = self.slurm.wait(job)
        found = {name: found[name] for name in ("JobState", "ExitCode", "Restarts")}
        expected = {"JobState": state, "ExitCode": code, "Restarts": str(restarts)}
        assert found == expected, self.log()[-3000:]

    def is_exact(self) -> bool:
        """Whether all that is logged is as in the undisturbed run, digit by digit."""
        return losses(self.save) == self.reference.losses


def losses(save: Path) -> list[tuple[str, ...]]:
    """(iteration, split, name, value, grad norm) of a run, as written."""
    names = ("iteration", "split", "name", "value", "grad_norm")
    return [tuple(row[name] for name in names) for row in read_log(save / "loss.csv")]


def as_project(folder: Path) -> None:
    """Give a folder what jobs want of the project's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("launch", "examples", "tools"):
        (folder / name).symlink_to(ROOT / name)


def job_environment(slurm: Cluster) -> dict[str, str]:
    """Of sbatch, which hands it to the job."""
    paths = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    ours = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    return ours | ON_CPU | slurm.environment | paths
