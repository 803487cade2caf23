"""The pictures of the quickstart's report, each as (name, SVG, figure of matplotlib, what it shows)."""

from pathlib import Path
from typing import Any

import matplotlib
from demo_figures import MODELS, Figure, rewards, trainings

from megatron_chimed.evaluation.reports.plots import as_svg, bar_chart
from megatron_chimed.training.curves import Panel, figures_of, picture

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  behind the choice of a backend without a screen

SPLITS = {"train": "train", "held out": "valid"}
Drawing = tuple[str, str, Any, str]


def losses(folder: Path, entropy: float) -> Drawing:
    """The losses of each training on its own data and on what is held out."""
    panels = [
        Panel(
            title,
            {label: figures_of(folder / place, f"{split}/loss") for label, split in SPLITS.items()},
            {f"unigram entropy ({entropy:.2f})": entropy} if place == "pretrain" else {},
            ylabel="loss (nats per token)",
        )
        for place, title in trainings(folder).items()
    ]
    figure = picture(panels)
    told = f"Losses of {', '.join(panel.title for panel in panels)}, in training and held out, against iterations"
    return "loss", as_svg(figure), figure, told


def reward_curves(folder: Path) -> Drawing:
    """How often each reward model orders a held-out pair rightly, against steps (paper, Figure 3)."""
    curves = {
        title: figures_of(folder / "reward" / name, "valid/pair accuracy") for name, title in rewards(folder).items()
    }
    figure = picture([Panel("", curves, {"chance": 0.5}, ylabel="validation accuracy of pairs")], "step")
    told = f"Held-out pairs that a reward model orders rightly, against steps: {', '.join(curves)}; chance is 0.5"
    return "reward", as_svg(figure), figure, told


def rewards_by_round(found: dict[str, Figure]) -> Drawing:
    """The reward of fresh answers after each round; a round's random control starts where the round starts."""
    chosen = [found[f"rejection/{name}"] for name in ("round 1/reward/start", *_rounds("after"))]
    controls = [found[f"rejection/{name}"] for name in _rounds("random control")]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.errorbar(range(3), *_with_errors(chosen), fmt="o-", capsize=3, label="rejection sampling")
    for number, (start, end) in enumerate(zip(chosen, controls, strict=False)):
        label = "random control of the round" if number == 0 else None
        places = (number, number + 1)
        axes.errorbar(places, *_with_errors([start, end]), fmt="s--", color="grey", capsize=3, label=label, zorder=0)
    axes.set_xticks(range(3), ["SFT", "round 1", "round 2"])
    axes.set_ylabel("mean reward, 95% interval")
    axes.grid(alpha=0.3)
    axes.legend()
    told = "Mean reward of fresh answers after each round of rejection sampling, beside the random control of the round"
    return "rejection", as_svg(figure), figure, told


def _rounds(model: str) -> list[str]:
    """Names of the reward of one kind of model after each round."""
    return [f"round {number}/reward/{model}" for number in (1, 2)]


def _with_errors(figures: list[Figure]) -> tuple[list[float], list[float]]:
    """(values, half widths of the 95% intervals)."""
    return [one["value"] for one in figures], [1.96 * one["error"] for one in figures]


def scores(found: dict[str, Figure], name: str, measures: list[str], label: str) -> Drawing:
    """Bars of some measures of every model."""
    bars = {
        model: {
            measure: {"mean": one["value"], "low": one["low"], "high": one["high"]}
            for measure in measures
            if (one := found[f"evaluation/{model}/{measure}"])["value"] is not None
        }
        for model in MODELS
    }
    bars = {model: one for model, one in bars.items() if one}
    return name, *bar_chart(bars, label), f"{', '.join(measures)}, in {label}: bars with intervals of {', '.join(bars)}"
