"""Bar charts with error bars, over any number of models: as SVG for a page, as PNG beside a Markdown report."""

import io
from pathlib import Path
from typing import Any

from megatron_chimed.jsonl import atomic_output

WIDTH = 0.8  # of all bars of a task together; the tasks are 1 apart
WIDEST = 12  # inches, which a page shows without making the letters small


def bar_chart(bars: dict[str, dict[str, dict]], label: str) -> tuple[str, Any]:
    """(SVG, figure) of {model: {task: {"mean", "low", "high"}}}; a model without a task has a gap there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(task for one in bars.values() for task in one))
    width = WIDTH / len(bars)
    inches = min(max(6, 1.2 * len(tasks) * (1 + len(bars) / 4)), WIDEST)
    figure, axes = pyplot.subplots(figsize=(inches, 5), layout="constrained")
    for number, (model, figures) in enumerate(bars.items()):
        places = [tasks.index(task) + (number - (len(bars) - 1) / 2) * width for task in figures]
        means = [one["mean"] for one in figures.values()]
        # Resampled means lie around the mean, but for a skewed metric it may fall just outside.
        below = [max(0.0, one["mean"] - one["low"]) for one in figures.values()]
        above = [max(0.0, one["high"] - one["mean"]) for one in figures.values()]
        axes.bar(places, means, width * 0.9, yerr=[below, above], capsize=2, label=model)
    axes.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)
    return as_svg(figure), figure


def as_svg(figure: Any) -> str:
    """A figure of matplotlib, which is closed, as SVG: the same text for the same figure."""
    from matplotlib import pyplot

    text = io.StringIO()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def save_png(figure: Any, path: Path) -> Path:
    """Write a figure as PNG; returns the path."""
    with atomic_output(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    return path
