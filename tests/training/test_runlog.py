"""The loss log: full precision, and one file for a run in several parts."""

import re

import pytest

from megatron_chimed.training.runlog import RunLog, log_rank0, read_log
from megatron_chimed.workers import COLUMNS


def test_a_resumed_log_reads_like_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    log = RunLog(whole, 0, 6, 1)
    for iteration in range(1, 7):
        log.training(iteration, {"lm loss": iteration / 3}, 0.1, 1.0)
    log = RunLog(parts, 0, 6, 1)
    for iteration in range(1, 5):
        log.training(iteration, {"lm loss": iteration / 3}, 0.1, 1.0)
    log.evaluation("test", 4, {"lm loss": 1.0})  # of the end of the first part: not in an uninterrupted run
    log = RunLog(parts, 2, 6, 1)  # the checkpoint is of iteration 2
    for iteration in range(3, 7):
        log.training(iteration, {"lm loss": iteration / 3}, 0.1, 1.0)
    assert (parts / "loss.csv").read_text() == (whole / "loss.csv").read_text()


def test_what_was_measured_before_the_first_step_stands_once_however_often_a_run_starts(tmp_path):
    for start in (0, 0, 2):  # killed before its first checkpoint, then after one
        log = RunLog(tmp_path, start, 6, 1)
        if not start:
            log.evaluation("valid", 0, {"lm loss general": 3.0})
            log.training(1, {"lm loss": 2.0}, 0.1, 1.0)
    assert [(row["iteration"], row["split"]) for row in read_log(tmp_path / "loss.csv")] == [
        ("0", "valid"),
        ("1", "train"),
    ]


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path):
    log = RunLog(tmp_path, 0, 2, 1)
    log.training(1, {"lm loss": 0.1}, 0.1, 1.0)
    with open(tmp_path / "loss.csv", "a") as file:
        file.write("2,train,lm lo")
    assert [row["iteration"] for row in read_log(tmp_path / "loss.csv")] == ["1"]


def test_values_keep_all_their_digits(tmp_path):
    log = RunLog(tmp_path, 0, 1, 1)
    log.training(1, {"lm loss": 1 / 3}, 0.1, 2 / 3)
    (row,) = read_log(tmp_path / "loss.csv")
    assert (float(row["value"]), float(row["grad_norm"])) == (1 / 3, 2 / 3)


def test_no_file_has_no_rows(tmp_path):
    assert read_log(tmp_path / "loss.csv") == []


@pytest.mark.parametrize("total", [20, 200, 1_000_000])
def test_a_bar_and_the_lines_beside_it_fit_in_a_hundred_columns(total, tmp_path, capsys):
    log_rank0("sft on 2 x CPU (TP 2 x PP 1 x DP 1, gloo); attention torch SDPA (packed: sdpa), norms torch, Adam torch")
    log = RunLog(tmp_path, 0, total, 40_960)
    log.bar.mininterval = 0
    for iteration in range(1, 20):
        losses = {"lm loss": 123.4567, "fill": 0.5, "targets": 0.25, "response accuracy": 0.98765}
        log.training(iteration, losses, 0.1, 1.0)
    told = {f"reward of rank {number}": number / 3 for number in range(30)}
    log.evaluation("final_valid", 20, told)
    log.evaluation("test", 20, told)
    shown = capsys.readouterr().err
    lines = re.split(r"[\r\n]", shown)
    assert max(map(len, lines)) <= COLUMNS, max(lines, key=len)
    assert "loss=123.457, response accuracy=0.988" in shown and f"{20 - 1}/{total}" in shown
    assert shown.index("Adam torch") < shown.index("loss=")
    for name, value in told.items():
        assert shown.count(f"{name} {value:.4f}") == 2  # in one piece


def test_where_there_is_room_every_figure_stands_behind_the_bar(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 20, 40_960)
    log.bar.mininterval, log.bar.ncols = 0, 200
    log.training(1, {"lm loss": 1.5, "fill": 0.5, "targets": 0.25, "response accuracy": 0.75}, 0.1, 1.0)
    shown = capsys.readouterr().err
    assert re.search(r"loss=1\.500, response accuracy=0\.750, targets/s=[\d,]+, tokens/s=[\d,]+, fill=0\.500\]", shown)


def test_a_run_shorter_than_the_bars_interval_ends_with_a_bar_and_one_without_iterations_has_none(tmp_path, capsys):
    log = RunLog(tmp_path / "one", 0, 1, 1)
    assert not capsys.readouterr().err
    log.training(1, {"lm loss": 1.5}, 0.1, 1.0)
    log.evaluation("test", 1, {"lm loss": 1.25})
    assert "1/1 [" in capsys.readouterr().err
