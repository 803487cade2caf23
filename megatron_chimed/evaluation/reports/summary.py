"""Records of the runs of a task -> its figures: means, standard errors, intervals, parts, and what went wrong."""

import math
from typing import Any

import numpy as np

from megatron_chimed.evaluation.catalog import TASKS
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.kinds.kind import Metric
from megatron_chimed.evaluation.statistics import estimate, mean_ratio

Records = list[dict]


def summarize(task: str, runs: list[Records]) -> dict[str, Any]:
    """The figures of a task over its runs, each of them with the same items in the same order.

    {"n": items, "metrics": {name: {"mean", "error", "low", "high", "runs", "signature"}}, "groups": {name: {"n",
    "metrics"}}, "problems": {name: items, in all runs}, "cut_prompts": items, in all runs}, and where there was
    thinking "thinking", answers in all runs, and "thinking_length" (`_thinking`). Shares are from 0 to 100.
    """
    thinking = sum("thinking" in record for run in runs for record in run)
    metrics, scale = KINDS[TASKS[task].kind].metrics, 100.0 if TASKS[task].percent else 1.0
    return {
        "n": len(runs[0]),
        "metrics": _figures(metrics, runs, scale),
        "groups": _groups(metrics, runs, scale),
        "problems": {
            name: int(sum(record["scores"][name] for run in runs for record in run))
            for name, metric in metrics.items()
            if metric.problem
        },
        "cut_prompts": sum("cut" in record for run in runs for record in run),
        **({"thinking": thinking, "thinking_length": _thinking(runs)} if thinking else {}),
    }


def _thinking(runs: list[Records]) -> dict[str, Any]:
    """Of the blocks of thinking: {"mean", "low", "high": characters, with the bounds of the interval over items;
    "longest": characters; "unended": blocks in all runs that never came to an end}."""
    lengths = [[len(record.get("thinking", "")) for record in run] for run in runs]
    found = estimate(np.array([[[one, float(one > 0)] for one in run] for run in lengths]), mean_ratio)
    figures = {"mean": found.mean, "low": found.low, "high": found.high, "longest": max(map(max, lengths))}
    return {**figures, "unended": sum("unended" in record for run in runs for record in run)}


def _figures(metrics: dict[str, Metric], runs: list[Records], scale: float) -> dict[str, dict]:
    """The figures of all metrics that are no counts of problems."""
    figures = {}
    for name, metric in metrics.items():
        if not metric.problem:
            values = np.array([[metric.row(record["scores"][name]) for record in run] for run in runs])
            figures[name] = {
                **{key: _number(scale * value) for key, value in estimate(values, metric.ratio)._asdict().items()},
                "runs": [_number(scale * float(metric.ratio(run.sum(axis=0)))) for run in values],
                "signature": metric.signature,
            }
            if name == "points":
                figures[name]["answered"] = int(values[..., 1].sum())
    return figures


def _number(value: float) -> float | None:
    """A figure for JSON; None where there is none, as for a scale of which no statement was answered."""
    return None if math.isnan(value) else value


def _groups(metrics: dict[str, Metric], runs: list[Records], scale: float) -> dict[str, dict]:
    """The figures of each subject, subscale or department, or of each type of entity."""
    groups: dict[str, list[Records]] = {}
    if "f1_strict" in metrics:
        for kind in sorted({kind for run in runs for record in run for kind in record["scores"]["f1_strict"]}):
            groups[kind] = [[_of_type(record, kind) for record in run] for run in runs]
    else:
        for name in dict.fromkeys(record["group"] for record in runs[0]):
            groups[name] = [[record for record in run if record["group"] == name] for run in runs]
    if len(groups) < 2:
        return {}
    return {
        name: {"n": _size(part[0]), "metrics": _figures(metrics, part, scale)} for name, part in sorted(groups.items())
    }


def _of_type(record: dict, kind: str) -> dict:
    """A record with the counts of one type alone."""
    scores = {
        name: {kind: value[kind]} if kind in value else {}
        for name, value in record["scores"].items()
        if name != "unparsed"
    }
    return {**record, "scores": scores}


def _size(records: Records) -> int:
    """Items of a group; for a type of entity, its gold entities."""
    counts = [record["scores"].get("f1_strict") for record in records]
    if any(count is not None for count in counts):
        return sum(gold for count in counts for _, _, gold in count.values())
    return len(records)
