"""The pictures of the quickstart's report, each as (name, SVG, figure of matplotlib)."""

from pathlib import Path
from typing import Any

import matplotlib
from figures import MODELS, REWARDS, TRAININGS, Figure, curves_of

from megatron_chimed.evaluation.plots import as_svg, bar_chart

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  behind the choice of a backend without a screen

Drawing = tuple[str, str, Any]


def losses(folder: Path, entropy: float) -> Drawing:
    """The losses of each training on its own data and on what is held out."""
    figure, panels = pyplot.subplots(1, len(TRAININGS), figsize=(14, 3.6), layout="constrained", sharey=True)
    for axes, (place, title) in zip(panels, TRAININGS.items(), strict=True):
        curves = curves_of(folder / place)
        axes.plot(*zip(*curves["train"], strict=True), label="train", linewidth=1)
        axes.plot(*zip(*curves["valid"], strict=True), "o-", label="held out")
        axes.set(xlabel="iteration", title=title, ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].axhline(entropy, color="grey", linestyle="--", label=f"unigram entropy ({entropy:.2f})")
    panels[0].set_ylabel("loss (nats per token)")
    for axes in panels:
        axes.legend()
    return "loss", as_svg(figure), figure


def reward_curves(folder: Path) -> Drawing:
    """How often each reward model orders a held-out pair rightly, against steps (paper, Figure 3)."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, title in REWARDS.items():
        axes.plot(*zip(*curves_of(folder / "reward" / name, "pair accuracy")["valid"], strict=True), "o-", label=title)
    axes.axhline(0.5, color="grey", linestyle="--", label="chance")
    axes.set(xlabel="step", ylabel="validation accuracy of pairs", ylim=(0.4, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    return "reward", as_svg(figure), figure


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
    return "rejection", as_svg(figure), figure


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
    return name, *bar_chart({model: one for model, one in bars.items() if one}, label)
