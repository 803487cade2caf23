"""The figures of a run: loss.csv in full precision beside the checkpoints, and a progress bar with the time left."""

import csv
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from megatron_chimed.jsonl import atomic_output

COLUMNS = ("iteration", "split", "name", "value", "grad_norm", "learning_rate")


def log_rank0(line: str) -> None:
    """One line on stderr, from rank 0."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"megatron_chimed: {line}", file=sys.stderr, flush=True)


def read_log(path: str | Path) -> list[dict[str, str]]:
    """The whole rows of a loss.csv; a last line cut off by a kill is passed over. [] when there is no file."""
    path = Path(path)
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [row for row in csv.DictReader(lines) if None not in row.values()]


class RunLog:
    """Writes each iteration's losses to FOLDER/loss.csv and draws progress; one per job, on its last rank.

    A resumed run keeps the rows up to the iteration that it resumes from, so that the file reads like that of an
    uninterrupted run. Values are written with all digits of their float32. derive: what becomes of an evaluation's
    figures. track: is told (iteration, split, figures) of all that is written.
    """

    def __init__(
        self,
        folder: str | Path | None,
        start: int,
        total: int,
        tokens_per_iteration: int,
        derive: Callable[[dict[str, float]], dict[str, float]] = dict,
        track: Callable[[int, str, dict[str, float]], None] = lambda iteration, split, figures: None,
    ):
        self.derive, self.track = derive, track
        self.file: TextIO | None = None
        if folder is not None:
            path = Path(folder) / "loss.csv"
            kept = [row for row in read_log(path) if start and int(row["iteration"]) <= start]
            kept = [row for row in kept if row["split"] in ("train", "valid")]
            with atomic_output(path) as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(kept)
            self.file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115  open as long as the run
        self.tokens_per_iteration = tokens_per_iteration
        self.bar = tqdm(
            total=total,
            initial=start,
            unit="it",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def training(self, iteration: int, losses: dict, learning_rate: float, grad_norm: float) -> None:
        """One iteration's training losses."""
        self._write(iteration, "train", losses, grad_norm, learning_rate)
        shown = {name.replace("lm loss", "loss"): f"{float(value):.4f}" for name, value in losses.items()}
        speed = (self.bar.format_dict["rate"] or 0) * self.tokens_per_iteration
        shown["tokens/s"] = f"{speed:,.0f}"
        if "targets" in shown:  # the share of tokens that are learnt
            shown["targets/s"] = f"{speed * float(shown.pop('targets')):,.0f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(iteration - self.bar.n)

    def evaluation(self, split: str, iteration: int, losses: dict) -> None:
        """One evaluation's losses, also printed above the bar."""
        losses = self.derive({name: float(value) for name, value in losses.items()})
        unseen = {name for name, value in losses.items() if math.isnan(value) and name.startswith("lm loss ")}
        losses = {name: value for name, value in losses.items() if name not in unseen}  # sources without a row here
        self._write(iteration, split, losses)
        figures = ", ".join(f"{name} {float(value):.4f}" for name, value in losses.items())
        self.bar.write(f"iteration {iteration}: {split.replace('_', ' ')} {figures}", file=sys.stderr)
        if split != "valid":
            self.bar.close()

    def _write(self, iteration, split, losses, grad_norm=None, learning_rate=None) -> None:
        losses = {name: float(value) for name, value in losses.items()}
        shared = {"grad_norm": grad_norm, "learning_rate": learning_rate}  # of all losses of an iteration
        self.track(iteration, split, losses | {k: float(v) for k, v in shared.items() if losses and v is not None})
        if self.file is None:
            return
        writer = csv.writer(self.file, lineterminator="\n")
        for name, value in losses.items():
            figures = (value, *shared.values())
            writer.writerow([iteration, split, name, *("" if f is None else repr(float(f)) for f in figures)])
        self.file.flush()
