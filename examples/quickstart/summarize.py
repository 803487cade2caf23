"""Summarize the quickstart's pre-training: losses against the corpus's unigram entropy, as text and as a plot.

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


def losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{"train" or "valid": [(iteration, nats per token)]} from a run's loss.csv. Raises InputError when it is empty."""
    curves: dict[str, list[tuple[int, float]]] = {"train": [], "valid": []}
    for row in read_log(folder / "loss.csv"):
        if row["split"] in curves:
            curves[row["split"]].append((int(row["iteration"]), float(row["value"])))
    if not all(curves.values()):
        raise InputError(f"{folder / 'loss.csv'}: no train or no valid losses; run the pre-training first")
    return curves


def plot(curves: dict[str, list[tuple[int, float]]], entropy: float, path: Path) -> None:
    """Draw both curves and the entropy as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*zip(*curves["train"], strict=True), label="train", linewidth=1)
    axes.plot(*zip(*curves["valid"], strict=True), "o-", label="held-out documents")
    axes.axhline(entropy, color="grey", linestyle="--", label=f"unigram entropy ({entropy:.2f})")
    axes.set(xlabel="iteration", ylabel="loss (nats per token)", title="Pre-training, TP = 2", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the quickstart's output, with corpus/ and pretrain/")
    folder = parser.parse_args().folder
    entropy = unigram_entropy(folder / "corpus" / "train_text_document")
    curves = losses(folder / "pretrain")
    plot(curves, entropy, folder / "loss.png")
    first, last = curves["train"][0][1], statistics.mean(loss for _, loss in curves["train"][-10:])
    print(f"unigram entropy of the corpus   {entropy:.3f} nats per token")
    print(f"train loss                      {first:.3f} -> {last:.3f} (mean of the last 10 iterations)")
    print(f"held-out loss                   {curves['valid'][0][1]:.3f} -> {curves['valid'][-1][1]:.3f}")
    print(f"checkpoint and losses           {folder / 'pretrain'}, {folder / 'pretrain' / 'loss.csv'}")
    print(f"plot                            {folder / 'loss.png'}")


if __name__ == "__main__":
    exit_cleanly(main)
