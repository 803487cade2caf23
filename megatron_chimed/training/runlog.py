"""The figures of a run: loss.csv in full precision beside the checkpoints, and a progress bar with the time left."""

import csv
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from megatron_chimed.jsonl import atomic_output
from megatron_chimed.workers import COLUMNS as WIDTH
from megatron_chimed.workers import Bar, in_columns

COLUMNS = ("iteration", "split", "name", "value", "grad_norm", "learning_rate")


def log_rank0(line: str) -> None:
    """A line on stderr, from rank 0; a long one goes on in the next, behind a comma or a semicolon."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(in_columns(re.split("(?<=[,;]) ", f"megatron_chimed: {line}")), file=sys.stderr, flush=True)


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
        self.bar = Bar(
            total=total,
            initial=start,
            unit="it",
            file=sys.stderr,
            dynamic_ncols=True,
            delay=1e-3,  # not before the first iteration: until then rank 0 has lines to print, which would stand in it
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def training(self, iteration: int, losses: dict, learning_rate: float, grad_norm: float) -> None:
        """One iteration's training losses."""
        self._write(iteration, "train", losses, grad_norm, learning_rate)
        self.bar.delay = 0  # else a run shorter than its interval would end without a bar
        self.bar.set_postfix(self._shown(losses), refresh=False)
        self.bar.update(iteration - self.bar.n)

    def _shown(self, losses: dict) -> dict[str, str]:
        """The figures behind the bar, as many as there is room for: losses, accuracies, speeds, then the others."""
        now = self.bar.format_dict
        speed = (now["rate"] or 0) * self.tokens_per_iteration
        speeds = {"tokens/s": speed}
        if "targets" in losses:  # the share of tokens that are learnt
            speeds = {"targets/s": speed * float(losses["targets"])} | speeds
        names = [name for name in losses if name != "targets"]
        names.sort(key=lambda name: (not name.endswith("loss"), not name.endswith("accuracy")))
        first = [name for name in names if name.endswith(("loss", "accuracy"))]
        texts = {name.replace("lm loss", "loss"): f"{float(losses[name]):.3f}" for name in first}
        texts |= {name: f"{value:,.0f}" for name, value in speeds.items()}
        texts |= {name: f"{float(losses[name]):.3f}" for name in names if name not in first}
        # Without figures a bar has ten columns, of which it may lose all but three; each figure has ", " and "=".
        room = (now["ncols"] or WIDTH) - len(Bar.format_meter(**now | {"ncols": None, "postfix": None})) + 7
        shown = {}
        for name, text in texts.items():
            room -= len(name) + len(text) + 3
            if room < 0:
                break
            shown[name] = text
        return shown

    def evaluation(self, split: str, iteration: int, losses: dict) -> None:
        """One evaluation's losses, also printed above the bar."""
        losses = self.derive({name: float(value) for name, value in losses.items()})
        unseen = {name for name, value in losses.items() if math.isnan(value) and name.startswith("lm loss ")}
        losses = {name: value for name, value in losses.items() if name not in unseen}  # sources without a row here
        self._write(iteration, split, losses)
        figures = ", ".join(f"{name} {float(value):.4f}" for name, value in losses.items())
        line = f"iteration {iteration}: {split.replace('_', ' ')} {figures}"
        self.bar.write(in_columns(re.split("(?<=,) ", line)), file=sys.stderr)
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
