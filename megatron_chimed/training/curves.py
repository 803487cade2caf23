"""Curves of training runs: the figures of loss.csv by name, smoothed, drawn beside each other, as a table."""

import csv
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_output
from megatron_chimed.training.runlog import read_log

NAMES = ("train/loss", "valid/loss", "grad_norm", "learning_rate")
"""What is drawn unless told: "loss" is the run's own, "lm loss", "ranking loss" or "preference loss"."""

LOSSES = ("lm loss", "ranking loss", "preference loss")
MOST_RUNS = 8
# Okabe and Ito's, which the colour-blind tell apart, grey in the place of yellow; the second half is drawn dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#8C8C8C")
FEW = 40  # points of a curve that are marked one by one

Points = list[tuple[int, float]]
"""(iteration or tokens, value), ascending."""


class Panel(NamedTuple):
    """One plot: curves by label; levels: horizontal lines by label; window: see `smoothed`."""

    title: str
    curves: dict[str, Points]
    levels: dict[str, float] = {}
    window: int = 1
    ylabel: str = ""


def read_runs(folders: Sequence[str | Path], names: Sequence[str] = NAMES, *, tokens: bool = False) -> list[Panel]:
    """A panel for each name, a curve for each run that has it.

    names: SPLIT/NAME as in loss.csv, NAME alone for its train split; "loss", "grad_norm" and "learning_rate" as in
    NAMES. tokens: over the tokens of the iterations, padding included. Raises InputError for a folder without a
    loss.csv, a name that no run has, more than MOST_RUNS.
    """
    if not 1 <= len(folders) <= MOST_RUNS:
        raise InputError(f"{len(folders)} runs: expected 1 to {MOST_RUNS}; more cannot be told apart in one picture")
    labels = _labels([Path(folder) for folder in folders])
    runs = {label: _figures(folder) for label, folder in labels.items()}
    panels = []
    for name in names:
        curves = {label: points for label, figures in runs.items() if (points := _pick(figures, name))}
        if not curves:
            there = sorted(set(itertools.chain.from_iterable(runs.values())))
            raise InputError(f"--name {name}: in none of the runs; there are {', '.join(there)}")
        if tokens:
            steps = {label: tokens_per_iteration(labels[label]) for label in curves}
            curves = {label: [(x * steps[label], y) for x, y in points] for label, points in curves.items()}
        panels.append(Panel(name, curves))
    return panels


def figures_of(folder: Path, name: str) -> Points:
    """One figure of a run by name, as in `read_runs`. Raises InputError when the run has none."""
    return next(iter(read_runs([folder], [name])[0].curves.values()))


def _labels(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their paths below what they have in common. Raises InputError for one given twice."""
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise InputError(f"a run is given twice: {', '.join(map(str, folders))}")
    common = os.path.commonpath([folder.parent for folder in whole])
    return {str(full.relative_to(common)): folder for full, folder in zip(whole, folders, strict=True)}


def _figures(folder: Path) -> dict[str, Points]:
    """All figures of a run by SPLIT/NAME. Raises InputError."""
    path = folder / "loss.csv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of a run, its --save")
    found: dict[str, dict[int, float]] = {}
    try:
        for row in read_log(path):
            place = int(row["iteration"])
            found.setdefault(f"{row['split']}/{row['name']}", {})[place] = float(row["value"])
            for shared in ("grad_norm", "learning_rate"):
                if row[shared]:
                    found.setdefault(f"{row['split']}/{shared}", {})[place] = float(row[shared])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: is no log of a run ({error})") from None
    if not found:
        raise InputError(f"{path}: has no rows yet; wait for the first iteration")
    return {name: sorted(points.items()) for name, points in found.items()}


def _pick(figures: dict[str, Points], name: str) -> Points | None:
    """The figure that a name means."""
    split, _, rest = name.rpartition("/")
    split = split or "train"
    wanted = LOSSES if rest == "loss" else (rest,)
    return next((figures[key] for one in wanted if (key := f"{split}/{one}") in figures), None)


def tokens_per_iteration(folder: Path) -> int:
    """Positions of a run's global batch, from its config.yaml. Raises InputError when they are not fixed there."""
    path = folder / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))["megatron"]
        if settings.get("rampup-batch-size") is not None:
            raise InputError(f"{path}: the batch grows (rampup-batch-size); draw over iterations")
        return int(settings["global-batch-size"]) * int(settings["seq-length"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise InputError(f"{path}: no global-batch-size and seq-length to count tokens; draw over iterations") from None


def smoothed(points: Points, window: int) -> Points:
    """The mean of the last `window` points, of fewer at the start; [(1, 2.), (2, 4.)] -> [(1, 2.), (2, 3.)]."""
    values = [y for _, y in points]
    spans = ((max(0, end - window), end) for end in range(1, len(points) + 1))
    return [(x, sum(values[a:b]) / (b - a)) for (x, _), (a, b) in zip(points, spans, strict=True)]


def with_window(panels: Iterable[Panel], window: int | None) -> list[Panel]:
    """Panels with training figures smoothed over a window; None: a fiftieth of the longest curve. Evaluations are means
    already, and the learning rate is no measurement. Raises InputError for a window below 1."""
    if window is not None and window < 1:
        raise InputError(f"--smooth {window}: expected a number of points, 1 for none")
    made = []
    for panel in panels:
        split, _, name = panel.title.rpartition("/")
        noisy = split in ("", "train") and name != "learning_rate"
        longest = max(map(len, panel.curves.values()))
        made.append(panel._replace(window=(window or max(1, longest // 50)) if noisy else 1))
    return made


def plot(panels: Sequence[Panel], path: str | Path, xlabel: str = "iteration") -> None:
    """Write `picture` as a PNG."""
    figure = picture(panels, xlabel)
    with atomic_output(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def picture(panels: Sequence[Panel], xlabel: str = "iteration") -> Any:
    """A figure of matplotlib with panels in rows of two; a label has one colour everywhere, and behind a smoothed curve
    lies the raw one. More than MOST_RUNS labels repeat the colours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    labels = list(dict.fromkeys(label for panel in panels for label in (*panel.curves, *panel.levels)))
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    columns = max(1, int(66 * across / (max(map(len, labels)) + 8)))  # of the legend, as its labels are long
    size = (5.5 * across, 3.4 * down + 0.25 * (1 + len(labels) // columns))
    figure, grid = pyplot.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    handles = {}
    for axes, panel in itertools.zip_longest(grid.flat, panels):
        if panel is None:
            axes.axis("off")
            continue
        for label, points in panel.curves.items():
            place = labels.index(label) % MOST_RUNS
            style = {"color": COLOURS[place], "linestyle": "-" if place < MOST_RUNS / 2 else "--"}
            if panel.window > 1:
                axes.plot(*zip(*points, strict=True), color=style["color"], alpha=0.2, linewidth=0.8)
            style |= {"marker": "o" if len(points) <= FEW else "", "markersize": 3, "linewidth": 1.4}
            (handles[label],) = axes.plot(*zip(*smoothed(points, panel.window), strict=True), **style)
        for label, level in panel.levels.items():
            handles[label] = axes.axhline(level, color="grey", linestyle=":", linewidth=1.4)
        about = f"mean of the last {panel.window} points" if panel.window > 1 else ""
        axes.set(title=panel.title, xlabel=xlabel, ylabel=", ".join(filter(None, [panel.ylabel, about])))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))  # 40, 2k, 1.5M
        axes.grid(alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    pyplot.close(figure)
    return figure


def write_table(panels: Iterable[Panel], path: str | Path, xlabel: str = "iteration") -> None:
    """The points of all panels as CSV: run, name, place, value, and the smoothed one, in full precision."""
    with atomic_output(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "name", xlabel, "value", "smoothed"])
        for panel in panels:
            for label, points in panel.curves.items():
                for (x, y), (_, mean) in zip(points, smoothed(points, panel.window), strict=True):
                    writer.writerow([label, panel.title, x, repr(y), repr(mean)])
