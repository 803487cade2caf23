"""Curves of runs: what is read, smoothed and drawn, and what bad input gives."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from megatron_chimed.errors import InputError
from megatron_chimed.training.curves import Panel, figures_of, read_runs, smoothed, with_window
from megatron_chimed.training.runlog import RunLog


def write_run(folder: Path, name: str = "lm loss", factor: float = 1.0, steps: int = 60) -> Path:
    """A run with a falling loss, evaluated every 20 iterations, 4 rows of 8 tokens an iteration."""
    log = RunLog(folder, 0, steps, 32)
    for step in range(1, steps + 1):
        log.training(step, {name: factor / step, "fill": 0.5}, 0.1, 2.0)
        if step % 20 == 0:
            log.evaluation("valid", step, {name: factor / step, "pair accuracy": 0.5})
    (folder / "config.yaml").write_text("megatron: {global-batch-size: 4, seq-length: '8'}\n")
    return folder


def plot(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/plot_runs.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_name_means_the_same_figure_in_every_run(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b/run", "ranking loss", 2.0)]
    train, valid, norm, accuracy = read_runs(runs, ["train/loss", "valid/loss", "grad_norm", "valid/pair accuracy"])
    assert train.curves.keys() == {"a", "b/run"}
    assert (train.curves["a"][3], train.curves["b/run"][3]) == ((4, 0.25), (4, 0.5))
    assert valid.curves["a"] == [(20, 0.05), (40, 0.025), (60, 1 / 60)]
    assert {value for _, value in norm.curves["a"]} == {2.0} and len(norm.curves["a"]) == 60
    assert accuracy.curves["a"] == figures_of(runs[0], "valid/pair accuracy")


def test_the_axis_can_be_tokens(tmp_path):
    (panel,) = read_runs([write_run(tmp_path)], ["valid/loss"], tokens=True)
    assert [x for x, _ in panel.curves[tmp_path.name]] == [640, 1280, 1920]


def test_a_torn_last_line_is_left_out(tmp_path):
    write_run(tmp_path)
    with open(tmp_path / "loss.csv", "a") as file:
        file.write("61,train,lm loss,0.0")
    assert figures_of(tmp_path, "train/loss")[-1][0] == 60


def test_smoothing_is_the_mean_of_the_last_points():
    assert smoothed([(1, 2.0), (2, 4.0), (5, 6.0), (6, 1.0)], 3) == [(1, 2.0), (2, 3.0), (5, 4.0), (6, 11 / 3)]
    assert smoothed([(1, 2.0), (2, 4.0)], 1) == [(1, 2.0), (2, 4.0)]


def test_only_noisy_figures_of_training_are_smoothed():
    points = [(step, 1.0) for step in range(500)]
    names = ("train/loss", "grad_norm", "learning_rate", "valid/loss")
    panels = [Panel(name, {"a": points}) for name in names]
    assert [panel.window for panel in with_window(panels, None)] == [10, 10, 1, 1]
    assert [panel.window for panel in with_window(panels, 7)] == [7, 7, 1, 1]


@pytest.mark.parametrize("number", [1, 8])
def test_the_command_draws_and_writes_a_table(tmp_path, number):
    runs = [write_run(tmp_path / f"run{place}", factor=place + 1) for place in range(number)]
    done = plot(*runs, "--output", tmp_path / "out/a.png", "--csv", tmp_path / "out/a.csv", "--smooth", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.csv", "a.png"]
    with open(tmp_path / "out/a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {run.name for run in runs}
    assert {"run": "run0", "name": "train/loss", "iteration": "2", "value": "0.5", "smoothed": "0.75"} in rows


def test_a_window_that_is_none_gives_one_line(tmp_path):
    done = plot(write_run(tmp_path / "a"), "--output", tmp_path / "a.png", "--smooth", 0)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1) and "--smooth 0: expected" in done.stderr
    assert not (tmp_path / "a.png").exists()


def test_bad_runs_are_named(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/loss.csv").write_text("a,b\n1,2\n")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/loss.csv").write_text("iteration,split,name,value,grad_norm,learning_rate\n1,train,x,y,,\n")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/loss.csv").write_text("iteration,split,name,value,grad_norm,learning_rate\n")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary/loss.csv").write_bytes(b"\xff\xfe\n")
    cases = {
        "empty/loss.csv: no such file": [tmp_path / "empty"],
        "other/loss.csv: is no log of a run": [tmp_path / "other"],
        "words/loss.csv: is no log of a run": [tmp_path / "words"],
        "binary/loss.csv: is no log of a run": [tmp_path / "binary"],
        "new/loss.csv: has no rows yet": [tmp_path / "new"],
        "a run is given twice": [run, tmp_path / "run/."],
        "9 runs: expected 1 to 8": [run] * 9,
    }
    for words, folders in cases.items():
        with pytest.raises(InputError, match=words):
            read_runs(folders)
    with pytest.raises(InputError, match="--name valid/nothing: in none of the runs; there are train/fill, "):
        read_runs([run], ["valid/nothing"])


@pytest.mark.parametrize(
    "config", [None, "[]", "megatron: {seq-length: 8}", "megatron: {seq-length: 8, rampup-batch-size: [1, 1, 9]}"]
)
def test_tokens_that_are_not_known_are_an_error(tmp_path, config):
    write_run(tmp_path)
    (tmp_path / "config.yaml").unlink()
    if config:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(InputError, match="config.yaml: .*; draw over iterations"):
        read_runs([tmp_path], tokens=True)
