"""Summarize the quickstart: losses of pre-training, against the corpus's unigram entropy, and of fine-tuning; how well
the reward models order answers, the curves of the paper's Figure 3.

Example:
    python examples/quickstart/summarize.py runs/demo
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.jsonl import find_corpus_manifest
from megatron_chimed.runlog import read_log


def unigram_entropy(prefix: Path) -> float:
    """Entropy of the corpus's token frequencies in nats per token: the loss of a model that only knows them."""
    dtype = find_corpus_manifest(prefix)[1]["dtype"]
    counts = np.bincount(np.fromfile(f"{prefix}.bin", dtype=dtype))
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def curves_of(folder: Path, name: str = "lm loss") -> dict[str, list[tuple[int, float]]]:
    """{"train" or "valid": [(iteration, value)]} of one figure in a run's loss.csv; a loss is in nats per token.

    Raises InputError when there is none.
    """
    curves: dict[str, list[tuple[int, float]]] = {"train": [], "valid": []}
    for row in read_log(folder / "loss.csv"):
        if row["split"] in curves and row["name"] == name:
            curves[row["split"]].append((int(row["iteration"]), float(row["value"])))
    if not all(curves.values()):
        raise InputError(f"{folder / 'loss.csv'}: no {name!r} of both train and valid; run the training first")
    return curves


def plot(stages: dict[str, dict[str, list[tuple[int, float]]]], entropy: float, path: Path) -> None:
    """Draw the curves of each stage by its title, and the entropy beside the first, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(stages), figsize=(11, 4), layout="constrained")
    for axes, (title, curves) in zip(panels, stages.items(), strict=True):
        axes.plot(*zip(*curves["train"], strict=True), label="train", linewidth=1)
        axes.plot(*zip(*curves["valid"], strict=True), "o-", label="held out")
        axes.set(xlabel="iteration", ylabel="loss (nats per token)", title=title, ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].axhline(entropy, color="grey", linestyle="--", label=f"unigram entropy ({entropy:.2f})")
    for axes in panels:
        axes.legend()
    figure.savefig(path, dpi=120)


REWARDS = {"four": "four ranks (adjacent pairs)", "two": "best and worst alone"}


def plot_rewards(folder: Path, path: Path) -> None:
    """Draw how often each reward model orders a held-out pair rightly, against steps (paper, Figure 3), as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, title in REWARDS.items():
        axes.plot(*zip(*curves_of(folder / name, "pair accuracy")["valid"], strict=True), "o-", label=title)
    axes.axhline(0.5, color="grey", linestyle="--", label="chance")
    axes.set(xlabel="step", ylabel="validation accuracy of pairs", title="Reward models, TP = 2", ylim=(0.4, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def figures_of_test(folder: Path) -> dict[str, float]:
    """The figures of a run's test split by name."""
    return {row["name"]: float(row["value"]) for row in read_log(folder / "loss.csv") if row["split"] == "test"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the quickstart's output, with corpus/, pretrain/, sft/ and reward/")
    folder = parser.parse_args().folder
    entropy = unigram_entropy(folder / "corpus" / "train_text_document")
    curves, tuned = curves_of(folder / "pretrain"), curves_of(folder / "sft" / "run")
    accuracy = curves_of(folder / "sft" / "run", "response accuracy")["valid"][-1][1]
    titles = ("Pre-training, TP = 2", "Fine-tuning on answers, TP = 2")
    plot(dict(zip(titles, (curves, tuned), strict=True)), entropy, folder / "loss.png")
    print(f"unigram entropy of the corpus   {entropy:.3f} nats per token")
    for name, stage in (("pre-training", curves), ("fine-tuning", tuned)):
        first, last = stage["train"][0][1], statistics.mean(loss for _, loss in stage["train"][-10:])
        held_out = f"{stage['valid'][0][1]:.3f} -> {stage['valid'][-1][1]:.3f}"
        print(f"{name:<31} train {first:.3f} -> {last:.3f} (mean of 10 iterations), held out {held_out}")
    print(f"held-out answers                {accuracy:.1%} of their tokens are the most likely ones")
    plot_rewards(folder / "reward", folder / "reward.png")
    for name, title in REWARDS.items():
        figures = figures_of_test(folder / "reward" / name)
        shown = ", ".join(f"{what} {figures[what]:.1%}" for what in ("pair accuracy", "best over worst", "exact order"))
        print(f"reward, {title}: test questions: {shown}")
    print(f"checkpoints and losses          {folder / 'pretrain'}, {folder / 'sft' / 'run'}")
    print(f"model for transformers          {folder / 'hf'}")
    print(f"plots                           {folder / 'loss.png'}, {folder / 'reward.png'}")


if __name__ == "__main__":
    exit_cleanly(main)
