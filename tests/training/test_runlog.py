"""The loss log: full precision, and one file for a run in several parts."""

from megatron_chimed.training.runlog import RunLog, read_log


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
