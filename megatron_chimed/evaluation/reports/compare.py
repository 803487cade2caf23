"""Two evaluated models item by item: what they answer to the same items is alike, so a difference is taken in pairs."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.catalog import TASKS
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.statistics import CONFIDENCE, RESAMPLES
from megatron_chimed.jsonl import read_json_lines


class Difference(NamedTuple):
    """How much more one model scores than another; error: standard error; low, high: bounds of the 95% interval, both
    by the bootstrap over the n items, the same resampled items for both models."""

    value: float
    error: float
    low: float
    high: float
    n: int


def read_samples(folder: str | Path, task: str, run: int = 0) -> dict[str, dict]:
    """{item id: record} of one run of a task in an output folder of `chimed evaluate`. Raises InputError."""
    path = Path(folder) / "samples" / f"{task}.{run}.jsonl"
    return {f"{record['group']}/{record['id']}": record for _, record in read_json_lines(path)}


def paired_difference(one: str | Path, other: str | Path, task: str, metric: str) -> Difference:
    """The metric of a task in `one` less that in `other`, both output folders of `chimed evaluate`, in the units of the
    report. Raises InputError if they have not answered the same items."""
    first, second = read_samples(one, task), read_samples(other, task)
    if first.keys() != second.keys():
        raise InputError(f"{one} and {other} have not answered the same items of {task}; evaluate both in the same way")
    return bootstrap_difference(*item_values([[first], [second]], task, metric))


def item_values(
    sides: Sequence[Sequence[dict[str, dict]]], task: str, metric: str
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], float]:
    """What `bootstrap_difference` takes: [sides, items, k] numbers that are summed over items, each its mean over runs;
    the metric of such sums; and the factor to the units of the report.

    sides: the runs of each model, as of `read_samples`, all of the same items.
    """
    how, scale = KINDS[TASKS[task].kind].metrics[metric], 100.0 if TASKS[task].percent else 1.0
    keys = list(sides[0][0])
    rows = [[[how.row(run[key]["scores"][metric]) for key in keys] for run in side] for side in sides]
    return np.array(rows, dtype=float).mean(axis=1), how.ratio, scale


def bootstrap_difference(
    values: np.ndarray, ratio: Callable[[np.ndarray], np.ndarray], scale: float = 1.0, *, seed: int = 0
) -> Difference:
    """values: [2, items, k] numbers that are summed over items; ratio: sums [..., k] -> metric; the difference is the
    first's metric less the second's, times `scale`; all is nan where one of them has none."""
    items = values.shape[1]
    whole = ratio(values.sum(axis=1)) * scale
    if np.isnan(whole).any():
        return Difference(*[math.nan] * 4, items)
    counts = np.random.default_rng(seed).multinomial(items, [1 / items] * items, size=RESAMPLES)
    metrics = ratio(np.einsum("bi,mik->mbk", counts, values, optimize=True)) * scale
    differences = metrics[0] - metrics[1]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(differences, [tail, 100 - tail])
    return Difference(float(whole[0] - whole[1]), float(np.nanstd(differences)), float(low), float(high), items)
