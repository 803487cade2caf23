"""Means, standard errors over runs and bootstrap intervals over items.

Every metric here is a function of sums over items: an accuracy is right / items, F1 is 2 x right / (answered + gold),
the mean of a bias scale is points / answered statements. So an item's value is a short row of numbers, and resampling
items is one matrix product.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


def mean_ratio(sums: np.ndarray) -> np.ndarray:
    """sums [..., 2] of (value, 1 where it counts) -> mean; nan where nothing counts, as there is no mean then."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] != 0)


def f1_ratio(sums: np.ndarray) -> np.ndarray:
    """sums [..., 3] of (right, answered, gold) -> F1; 1 where there is neither an answer nor a gold entity."""
    size = sums[..., 1] + sums[..., 2]
    return np.divide(2 * sums[..., 0], size, out=np.ones(sums.shape[:-1]), where=size != 0)


class Estimate(NamedTuple):
    """mean over runs, standard error over runs (0 for one run), and the bounds of the bootstrap interval over items."""

    mean: float
    error: float
    low: float
    high: float


def estimate(values: np.ndarray, ratio: Callable[[np.ndarray], np.ndarray], *, seed: int = 0) -> Estimate:
    """The estimate of a metric.

    values: [runs, items, k] numbers that are summed over items; ratio: sums [..., k] -> metric. The interval resamples
    items with replacement, the same ones in all runs, and takes the percentiles of the mean over runs. Runs and
    resamples without a value (`mean_ratio`) are left out; all is nan where no run has one.
    """
    items = values.shape[1]
    values = values[~np.isnan(ratio(values.sum(axis=1)))]
    runs = len(values)
    if not runs:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    scores = ratio(values.sum(axis=1))
    error = float(scores.std(ddof=1) / math.sqrt(runs)) if runs > 1 else 0.0
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, RESAMPLES, 100):  # in parts, as a matrix of all would be large
        counts = rng.multinomial(items, [1 / items] * items, size=min(100, RESAMPLES - start))
        means.append(ratio(np.einsum("bi,rik->brk", counts, values, optimize=True)).mean(axis=1))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(np.concatenate(means), [tail, 100 - tail])
    return Estimate(float(scores.mean()), error, float(low), float(high))
