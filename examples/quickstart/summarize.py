"""Summarize the quickstart: losses of pre-training, against the corpus's unigram entropy, and of fine-tuning; how well
the reward models order answers, the curves of the paper's Figure 3.

Example:
    python examples/quickstart/summarize.py runs/demo
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from megatron_chimed.curves import Panel, Points, draw, figures_of
from megatron_chimed.errors import exit_cleanly
from megatron_chimed.jsonl import find_corpus_manifest
from megatron_chimed.runlog import read_log


def unigram_entropy(prefix: Path) -> float:
    """Entropy of the corpus's token frequencies in nats per token: the loss of a model that only knows them."""
    dtype = find_corpus_manifest(prefix)[1]["dtype"]
    counts = np.bincount(np.fromfile(f"{prefix}.bin", dtype=dtype))
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


REWARDS = {"four": "four ranks (adjacent pairs)", "two": "best and worst alone"}


def plot_losses(stages: dict[str, tuple[Points, Points]], entropy: float, path: Path) -> None:
    """Draw (train, held out) of each stage by its title, and the entropy beside the first."""
    panels = [
        Panel(title, {"train": train, "held out": held_out}, ylabel="loss (nats per token)")
        for title, (train, held_out) in stages.items()
    ]
    panels[0] = panels[0]._replace(levels={f"unigram entropy ({entropy:.2f})": entropy})
    draw(panels, path)


def plot_rewards(folder: Path, path: Path) -> None:
    """Draw how often each reward model orders a held-out pair rightly, against steps (paper, Figure 3)."""
    curves = {title: figures_of(folder / name, "valid/pair accuracy") for name, title in REWARDS.items()}
    panel = Panel("Reward models, TP = 2", curves, {"chance": 0.5}, ylabel="validation accuracy of pairs")
    draw([panel], path, "step")


def figures_of_test(folder: Path) -> dict[str, float]:
    """The figures of a run's test split by name."""
    return {row["name"]: float(row["value"]) for row in read_log(folder / "loss.csv") if row["split"] == "test"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the quickstart's output, with corpus/, pretrain/, sft/ and reward/")
    folder = parser.parse_args().folder
    entropy = unigram_entropy(folder / "corpus" / "train_text_document")
    runs = {"pre-training": folder / "pretrain", "fine-tuning": folder / "sft" / "run"}
    losses = {name: (figures_of(run, "train/loss"), figures_of(run, "valid/loss")) for name, run in runs.items()}
    accuracy = figures_of(runs["fine-tuning"], "valid/response accuracy")[-1][1]
    titles = ("Pre-training, TP = 2", "Fine-tuning on answers, TP = 2")
    plot_losses(dict(zip(titles, losses.values(), strict=True)), entropy, folder / "loss.png")
    print(f"unigram entropy of the corpus   {entropy:.3f} nats per token")
    for name, (train, valid) in losses.items():
        first, last = train[0][1], statistics.mean(loss for _, loss in train[-10:])
        held_out = f"{valid[0][1]:.3f} -> {valid[-1][1]:.3f}"
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
