"""What fails without each patch of the trainer: a test here fails by the patch's name when upstream has mended it."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.job import Job, figures, write_corpus
from support.ranks import WITHOUT

from megatron_chimed import checkpoints
from megatron_chimed.training.runlog import read_log
from megatron_chimed.training.upstream import PATCHES

MENDED = "upstream has mended {}: remove the patch"
STAGE = {"train-iters": 4, "eval-iters": 1, "eval-interval": 2, "use-distributed-optimizer": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Job:
    """A job that has run for four iterations into run/, and for two of them into half/."""
    folder = tmp_path_factory.mktemp("upstream")
    job = Job(folder, stage=STAGE | {"data-path": str(write_corpus(folder))}, chimed={"keep_checkpoints": 1})
    job.run("--save", folder / "run", "--save-interval", 1, ranks=1)
    job.run("--save", folder / "half", "--exit-interval", 2, ranks=1)
    return job


def where(name: str) -> str:
    """``module:function`` of a patch."""
    return next(patch.where for patch in PATCHES if patch.name == name)


def run_without(monkeypatch, job: Job, names: list[str], *arguments) -> tuple[int, str]:
    """(exit code, output) of a job without patches."""
    monkeypatch.setenv(WITHOUT, ",".join(map(where, names)))
    (job.folder / "output.txt").write_text("")
    code = job.start(*arguments, ranks=1).wait(timeout=120)
    return code, job.output()


def resume_without(monkeypatch, job: Job, name: str, tmp_path) -> tuple[int, str]:
    """The same of a job that goes on from its second iteration, in resumed/."""
    shutil.copytree(job.folder / "half", tmp_path / "resumed")
    return run_without(monkeypatch, job, [name], "--save", tmp_path / "resumed")


def test_control_with_all_patches_a_resumed_run_is_the_uninterrupted_one(whole, monkeypatch, tmp_path):
    shutil.copytree(whole.folder / "half", tmp_path / "resumed")
    code, output = run_without(monkeypatch, whole, [], "--save", tmp_path / "resumed")
    assert code == 0, output[-3000:]
    assert figures(tmp_path / "resumed") == figures(whole.folder / "run")
    assert figures(tmp_path / "resumed", "valid") == figures(whole.folder / "run", "valid")


def test_adam_state_before_loading(whole, monkeypatch, tmp_path):
    code, output = resume_without(monkeypatch, whole, "adam_state_before_loading", tmp_path)
    assert code != 0 and "AssertionError" in output, MENDED.format("adam_state_before_loading")


def test_optimizer_loaded_exactly(whole, monkeypatch, tmp_path):
    code, _ = resume_without(monkeypatch, whole, "optimizer_loaded_exactly", tmp_path)
    same = figures(tmp_path / "resumed") == figures(whole.folder / "run")
    assert code != 0 or not same, MENDED.format("optimizer_loaded_exactly")


def test_extendable_schedule(whole, monkeypatch, tmp_path):
    shutil.copytree(whole.folder / "run", tmp_path / "longer")
    longer = ("--save", tmp_path / "longer", "--train-iters", 5)
    code, output = run_without(monkeypatch, whole, ["extendable_schedule"], *longer)
    assert code == 1 and "the learning-rate schedule differs" in output, MENDED.format("extendable_schedule")


def test_first_iteration_logged_once(whole, monkeypatch, tmp_path):
    shutil.copytree(whole.folder / "half", tmp_path / "resumed")
    save = ("--save", tmp_path / "resumed", "--log-interval", 2, "--train-iters", 6)
    run_without(monkeypatch, whole, ["first_iteration_logged_once"], *save)
    printed = [float(text) for text in re.findall(r"lm loss: ([\dE.+-]+) \|", whole.output())]
    means = [sum(float(value) for _, value, _ in figures(tmp_path / "resumed")[n : n + 2]) / 2 for n in (2, 4)]
    assert len(printed) > len(means), MENDED.format("first_iteration_logged_once")


def test_hooks_into_the_log(whole, monkeypatch, tmp_path):
    without = ["log_iterations", "log_evaluations"]
    code, _ = run_without(monkeypatch, whole, without, "--save", tmp_path / "run")
    assert code == 0 and read_log(tmp_path / "run" / "loss.csv") == []


def test_load_base_and_adapters(whole, monkeypatch, tmp_path):
    stage = STAGE | {"data-path": str(whole.folder / "corpus_text_document")}
    adapted = Job(tmp_path, stage=stage, chimed={"lora": {"rank": 2, "alpha": 2}})
    start = ("--load", whole.folder / "run", "--finetune", "--save", tmp_path / "run")
    code, output = run_without(monkeypatch, adapted, ["load_base_and_adapters"], *start)
    assert code == 1 and "holds another model: missing adapters." in output, MENDED.format("load_base_and_adapters")


def test_check_state_dict(whole, monkeypatch, tmp_path):
    """The output layer of an untied model is not wanted by a tied one."""
    tied = ("--load", whole.folder / "run", "--finetune", "--untie-embeddings-and-output-weights", "false")
    code, output = run_without(monkeypatch, whole, ["check_state_dict"], "--save", tmp_path / "a", *tied)
    assert code == 0, MENDED.format("check_state_dict") + output[-2000:]
    code, output = run_without(monkeypatch, whole, [], "--save", tmp_path / "b", *tied)
    assert code == 1 and "holds another model" in output


def test_save_with_manifest(whole, monkeypatch, tmp_path):
    left = checkpoints.path_of(tmp_path / "run", 4) / "left_by_a_cut_off_save"
    left.parent.mkdir(parents=True)
    left.touch()
    code, _ = run_without(monkeypatch, whole, ["save_with_manifest"], "--save", tmp_path / "run")
    assert code == 0 and left.exists(), MENDED.format("save_with_manifest")
    assert not checkpoints.has_manifest(left.parent), MENDED.format("save_with_manifest")


def test_keep_the_newest(whole, monkeypatch, tmp_path):
    save = ("--save", tmp_path / "run", "--save-interval", 1)
    code, _ = run_without(monkeypatch, whole, ["keep_the_newest"], *save)
    assert code == 0 and checkpoints.iterations(tmp_path / "run") == [1, 2, 3, 4]
    assert checkpoints.iterations(whole.folder / "run") == [4]


def test_supervise(whole, monkeypatch, tmp_path):
    """A signal ends the rank at once, and nothing is saved."""
    monkeypatch.setenv(WITHOUT, where("supervise"))
    process = whole.start("--save", tmp_path / "run", "--train-iters", 500, ranks=1)
    deadline = time.monotonic() + 60
    while not read_log(tmp_path / "run" / "loss.csv") and time.monotonic() < deadline:
        time.sleep(0.05)
    (rank,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(rank), signal.SIGUSR1)
    assert process.wait(timeout=60) == 128 + signal.SIGUSR1
    assert checkpoints.latest_iteration(tmp_path / "run") == 0, MENDED.format("supervise")
