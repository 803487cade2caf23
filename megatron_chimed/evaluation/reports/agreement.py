"""Ratings of annotators -> means with intervals, and how far the annotators agree."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.reports.human import CRITERIA, LEVELS, PAPER, Ratings, read_ratings
from megatron_chimed.evaluation.statistics import estimate, mean_ratio
from megatron_chimed.jsonl import atomic_output, read_json, write_json


def weighted_kappa(one: list[int], other: list[int], weights: str = "linear") -> float | None:
    """Cohen's weighted kappa of two raters' levels; None where both gave one and the same level to everything.

    weights: disagreement counts by the distance of the levels ("linear") or its square ("quadratic").
    Source: Cohen, "Weighted kappa", Psychological Bulletin 70 (1968).
    """
    places = np.array([[LEVELS.index(level) for level in rater] for rater in (one, other)])
    size = len(LEVELS)
    observed = np.zeros((size, size))
    np.add.at(observed, (places[0], places[1]), 1)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / max(1, len(one))
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(float)
    cost = distance if weights == "linear" else distance**2
    if not (cost * expected).sum():
        return None
    return float(1 - (cost * observed).sum() / (cost * expected).sum())


def report_ratings(key_path: str | Path, files: list[str | Path], output: str | Path) -> dict[str, Any]:
    """Read the files of two annotators or more and write OUTPUT/human.json and OUTPUT/human.md; returns the results.

    A mean is over annotators and answers, its interval over resampled answers; an answer counts that all annotators
    have rated. Raises InputError.
    """
    key = read_json(key_path)
    read = [read_ratings(path, key) for path in files]
    names = [name for name, _, _ in read]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"annotators {', '.join(names) or 'none'}; expected two or more, each with a name of their own"
        )
    common = [code for code in key["answers"] if all(code in ratings for _, ratings, _ in read)]
    if not common:
        raise InputError("no answer that all annotators have rated")
    results = {
        "form": key["form"],
        "annotators": {name: {"rated": len(ratings), "faults": faults} for name, ratings, faults in read},
        "rated_by_all": len(common),
        "means": _means(key, common, [ratings for _, ratings, _ in read]),
        "kappa": _kappas(common, read),
    }
    output = Path(output)
    write_json(output / "human.json", results)
    with atomic_output(output / "human.md") as file:
        file.write(_markdown(results))
    return results


def _means(key: dict, common: list[str], ratings: list[Ratings]) -> dict[str, Any]:
    """{kind: {model: {"n", criterion: {"mean", "low", "high"}}}}."""
    means: dict[str, Any] = {}
    for kind in PAPER:
        for model in key["models"]:
            codes = [c for c in common if key["answers"][c]["kind"] == kind and key["answers"][c]["model"] == model]
            if codes:
                row: dict[str, Any] = {"n": len(codes)}
                for name in CRITERIA:
                    levels = np.array([[[one[code][name], 1] for code in codes] for one in ratings], float)
                    found = estimate(levels, mean_ratio)
                    row[name] = {"mean": found.mean, "low": found.low, "high": found.high}
                means.setdefault(kind, {})[model] = row
    return means


def _kappas(common: list[str], read: list[tuple[str, Ratings, list[str]]]) -> list[dict[str, Any]]:
    """Agreement of each two annotators, by criterion."""
    rows = []
    for (one, first, _), (other, second, _) in combinations(read, 2):
        for name in CRITERIA:
            levels = [[ratings[code][name] for code in common] for ratings in (first, second)]
            same = sum(a == b for a, b in zip(*levels, strict=True)) / len(common)
            kappas = {weights: weighted_kappa(*levels, weights) for weights in ("linear", "quadratic")}
            rows.append({"annotators": [one, other], "criterion": name, "n": len(common), "same": same, **kappas})
    return rows


def _markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    lines = [
        "# Human evaluation",
        "",
        f"{results['rated_by_all']} answers were rated by all annotators. Levels 1 to 3.",
    ]
    for name, one in results["annotators"].items():
        first = f", the first: {one['faults'][0]}" if one["faults"] else ""
        lines.append(f"{name}: {one['rated']} answers rated, {len(one['faults'])} left out{first}.")
    header = ["model", "n", *CRITERIA]
    for kind, models in results["means"].items():
        lines += ["", f"## {kind}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for model, row in models.items():
            cells = [f"{row[c]['mean']:.2f} [{row[c]['low']:.2f}, {row[c]['high']:.2f}]" for c in CRITERIA]
            lines.append("| " + " | ".join([model.replace("|", "\\|"), str(row["n"]), *cells]) + " |")
        lines.append("| ChiMed-GPT (paper) | 50 | " + " | ".join(f"{PAPER[kind][c]:.2f}" for c in CRITERIA) + " |")
    header = ["annotators", "criterion", "n", "same level", "kappa, linear", "kappa, quadratic"]
    lines += ["", "## Agreement", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in results["kappa"]:
        kappas = ["not defined" if row[w] is None else f"{row[w]:.3f}" for w in ("linear", "quadratic")]
        cells = [" and ".join(row["annotators"]), row["criterion"], str(row["n"]), f"{row['same']:.0%}", *kappas]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
