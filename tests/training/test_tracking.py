"""TensorBoard and W&B: flags that cannot work are refused, and both get the figures of loss.csv by their names."""

import argparse
import importlib.util

import pytest

from megatron_chimed.errors import InputError
from megatron_chimed.training import tracking
from megatron_chimed.training.runlog import RunLog, read_log
from megatron_chimed.training.tracking import Tracker


class Writer:
    """Stands for both writers."""

    def __init__(self):
        self.got = []

    def add_scalar(self, name, value, iteration):
        self.got.append((iteration, name, value))

    def log(self, figures, iteration):
        self.got += [(iteration, name, value) for name, value in figures.items()]


def flags(**given) -> argparse.Namespace:
    nothing = dict.fromkeys(("tensorboard_dir", "wandb_project", "wandb_exp_name", "wandb_save_dir", "save"))
    return argparse.Namespace(**nothing | given)


def test_both_writers_get_what_loss_csv_gets(tmp_path):
    tensorboard, wandb = Writer(), Writer()
    tracker = Tracker(lambda: tensorboard, lambda: wandb)
    log = RunLog(tmp_path, 0, 2, 1, lambda means: means | {"twice": 2 * means["lm loss"]}, tracker)
    log.training(1, {"lm loss": 0.1, "fill": 1.0}, 0.5, 2.0)
    log.evaluation("valid", 1, {"lm loss": 0.2, "lm loss mc": float("nan")})
    log.evaluation("test", 1, {"lm loss": 0.3})
    rows = [
        (int(row["iteration"]), f"{row['split']}/{row['name']}", float(row["value"]))
        for row in read_log(tmp_path / "loss.csv")
    ]
    assert (1, "valid/twice", 0.4) in rows and len(rows) == 6
    shared = [(1, "train/grad_norm", 2.0), (1, "train/learning_rate", 0.5)]
    assert sorted(tensorboard.got) == sorted(wandb.got) == sorted(rows + shared)


def test_training_is_sent_at_the_interval_that_is_asked_and_evaluations_always():
    wandb = Writer()
    tracker = Tracker(lambda: None, lambda: wandb, interval=2)
    for iteration in range(1, 5):
        tracker(iteration, "train", {"lm loss": 1.0})
    tracker(5, "valid", {"lm loss": 1.0})
    assert [iteration for iteration, _, _ in wandb.got] == [2, 4, 5]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tensorboard_dir": "runs/tb"}, "package tensorboard is not installed; install extra `tracking`"),
        ({"wandb_project": "p", "save": "runs/a"}, "package wandb is not installed; install extra `tracking`"),
    ],
)
def test_a_package_that_is_absent_is_named(monkeypatch, given, words):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=words):
        tracking.refuse(flags(**given))
    tracking.refuse(flags())


@pytest.mark.parametrize("given", [{}, {"save": "runs/a", "wandb_exp_name": ""}])
def test_wandb_needs_a_name_and_a_folder(monkeypatch, given):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(InputError, match="--wandb-exp-name, and a folder, --wandb-save-dir or --save"):
        tracking.refuse(flags(wandb_project="p", **given))
