"""When a loss has exploded."""

import math
import random
import statistics

import pytest

from megatron_chimed.training.loss_spike import LossSpikeDetector


def first(watch, losses):
    """(place of the first verdict, verdict)."""
    return next(((place, said) for place, loss in enumerate(losses) if (said := watch.update(loss))), None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_reported_at_once_also_when_the_rule_is_off(value):
    assert first(LossSpikeDetector(0, 5), [1.0, value]) == (1, f"the loss is {value}")


def test_a_loss_above_the_limit_for_some_iterations_on_end_is_reported():
    losses = [2.0] * 20 + [9.0, 9.0, 2.0] + [9.0] * 5
    place, said = first(LossSpikeDetector(3.0, 3), losses)
    assert place == 25 and said == "the loss is 9, above 3 times its median of 2 for 3 iterations"
    assert first(LossSpikeDetector(5.0, 3), losses) is None and first(LossSpikeDetector(0.0, 3), losses) is None
    assert first(LossSpikeDetector(3.0, 6), losses) is None


def test_a_plateau_above_the_limit_does_not_become_the_median():
    assert first(LossSpikeDetector(3.0, 200), [2.0] * 10 + [9.0] * 200) is not None


def test_nothing_is_judged_before_there_are_ten_losses():
    assert first(LossSpikeDetector(2.0, 1), [1.0] * 9 + [50.0]) is None
    assert first(LossSpikeDetector(2.0, 1), [1.0] * 10 + [50.0])[0] == 10


def test_the_rule_is_its_slow_twin():
    numbers = random.Random(0)
    for _ in range(50):
        losses = [numbers.choice((1.0, 2.0, 3.0, 8.0)) * numbers.random() for _ in range(150)]
        calm, above, expected = [], 0, None
        for place, loss in enumerate(losses):
            if len(calm) >= 10 and loss > 2 * statistics.median(calm[-100:]):
                above += 1
            else:
                calm, above = [*calm, loss], 0
            if above == 2:
                expected = place
                break
        found = first(LossSpikeDetector(2.0, 2), losses)
        assert expected == (found and found[0])
