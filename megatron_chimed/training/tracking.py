"""TensorBoard and Weights & Biases by Megatron's own flags: refused early where they cannot work, and our figures too.

Megatron writes its means under names of its own, and to W&B only where TensorBoard runs beside it. Here both get what
loss.csv gets, as ``SPLIT/NAME`` ("valid/pair accuracy").
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from typing import Any

from megatron_chimed.errors import InputError, one_line


def refuse(args: argparse.Namespace) -> None:
    """Raise InputError for flags that cannot work here; upstream warns once, or dies in the midst of starting."""
    if args.tensorboard_dir and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard-dir: the package tensorboard is not installed; install extra `tracking`")
    if not args.wandb_project:
        return
    if importlib.util.find_spec("wandb") is None:
        raise InputError("--wandb-project: the package wandb is not installed; install extra `tracking`")
    if args.wandb_exp_name == "" or not (args.save or args.wandb_save_dir):
        raise InputError("--wandb-project needs a name, --wandb-exp-name, and a folder, --wandb-save-dir or --save")
    if int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1:  # the rank that will write
        _check_login()


def _check_login() -> None:
    """Raise InputError when W&B is to send what it gets, and has no key or no server that takes it."""
    import wandb

    remedy = "run `wandb login`, or set WANDB_MODE=offline and send the run later with `wandb sync`"
    if wandb.setup().settings.mode != "online":
        return
    try:
        known = wandb.login(prompt=False)
    except wandb.errors.Error as error:
        raise InputError(f"--wandb-project: {one_line(error)} {remedy}") from None
    if not known:
        raise InputError(f"--wandb-project: W&B has no key; {remedy}")


class Tracker:
    """Passes figures on to the writers of this process.

    tensorboard, wandb: what give Megatron's writers, or None; they exist only once the trainer has started. interval:
    --tensorboard-log-interval, in iterations, for training.
    """

    def __init__(self, tensorboard: Callable[[], Any], wandb: Callable[[], Any], interval: int = 1):
        self.tensorboard, self.wandb, self.interval = tensorboard, wandb, interval

    def __call__(self, iteration: int, split: str, figures: dict[str, float]) -> None:
        """Write the figures of one iteration of training, or of one evaluation."""
        if split == "train" and iteration % self.interval:
            return
        figures = {f"{split}/{name}": value for name, value in figures.items()}
        if writer := self.tensorboard():
            for name, value in figures.items():
                writer.add_scalar(name, value, iteration)
        if wandb := self.wandb():
            wandb.log(figures, iteration)
