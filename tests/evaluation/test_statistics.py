"""Means, standard errors and bootstrap intervals against slower ways to the same figures."""

import math

import numpy as np
import pytest

from megatron_chimed.evaluation.statistics import estimate, f1_ratio, mean_ratio


def test_the_mean_and_its_standard_error_over_runs():
    right = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]], float)
    found = estimate(np.stack([right, np.ones_like(right)], axis=-1), mean_ratio)
    means = right.mean(axis=1)
    assert found.mean == pytest.approx(means.mean(), abs=1e-12)
    assert found.error == pytest.approx(math.sqrt(sum((means - means.mean()) ** 2) / 2 / 3), abs=1e-12)


def test_f1_of_sums_is_that_of_precision_and_recall():
    right, answered, gold = 3, 5, 8
    precision, recall = right / answered, right / gold
    expected = 2 * precision * recall / (precision + recall)
    assert f1_ratio(np.array([right, answered, gold], float)) == pytest.approx(expected, abs=1e-12)
    assert f1_ratio(np.zeros(3)) == 1 and f1_ratio(np.array([0.0, 0.0, 2.0])) == 0


@pytest.mark.parametrize("ratio", [mean_ratio, f1_ratio])
def test_the_interval_is_that_of_resampling_items_one_by_one(ratio):
    draw = np.random.default_rng(1)
    gold = draw.integers(1, 4, size=300).astype(float)
    right = draw.binomial(gold.astype(int), 0.6).astype(float)
    values = np.stack([right, gold] if ratio is mean_ratio else [right, gold, gold], axis=-1)[None]
    found = estimate(values, ratio)
    slow = [ratio(values[0][draw.integers(300, size=300)].sum(axis=0)) for _ in range(4000)]
    low, high = np.percentile(slow, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.012) and found.high == pytest.approx(high, abs=0.012)
    assert found.low < found.mean < found.high


def test_all_right_or_one_item_has_no_width_and_the_same_call_the_same_interval():
    values = np.ones((1, 50, 2))
    assert estimate(values, mean_ratio) == (1.0, 0.0, 1.0, 1.0)
    values[0, ::3, 0] = 0
    assert estimate(values, mean_ratio) == estimate(values, mean_ratio)
    assert estimate(values, mean_ratio).low < 1


def test_without_an_answered_statement_there_is_no_mean_and_not_the_least_biased_one():
    values = np.zeros((2, 40, 2))
    assert all(math.isnan(value) for value in estimate(values, mean_ratio))
    values[0, :2] = [[3, 1], [5, 1]]  # one run has two answers; resamples without any do not count as zero
    found = estimate(values, mean_ratio)
    assert found.mean == 4 and found.low == 3 and found.high == 5 and found.error == 0


def test_an_interval_of_95_percent_holds_the_truth_in_95_of_100_cases():
    draw = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        right = (draw.random((2, 100)) < 0.25).astype(float)
        found = estimate(np.stack([right, np.ones_like(right)], axis=-1), mean_ratio)
        hits += found.low - 1e-9 <= 0.25 <= found.high + 1e-9
    assert 0.92 <= hits / 300 <= 0.98
