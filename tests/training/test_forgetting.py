"""Forgetting in numbers: the interval of a difference, and options that make no sense."""

import numpy as np
import pytest

from megatron_chimed.config import Located, parse_dataclass
from megatron_chimed.errors import InputError
from megatron_chimed.training.forgetting import compared, line_of
from megatron_chimed.training.options import JobOptions, Replay


def entry(sums, counts) -> dict:
    return {"rows": len(sums), "before": sum(sums) / sum(counts), "sums_before": list(sums), "counts": list(counts)}


def test_the_interval_holds_the_difference_of_all_rows_as_often_as_it_says():
    random, inside = np.random.default_rng(0), 0
    population = 50_000
    counts = random.integers(5, 60, population).astype(float)
    before = counts * random.normal(3, 1, population)  # rows differ far more than they change
    after = before + counts * random.normal(0.05, 0.2, population)
    truth = (after - before).sum() / counts.sum()
    for _ in range(1000):
        rows = random.choice(population, 40)
        found = compared(entry(before[rows], counts[rows]), np.stack([after[rows], counts[rows]], axis=1))
        inside += found["low"] <= truth <= found["high"]
        assert found["high"] - found["low"] < 0.3, "the same rows before and after: how they differ does not count"
    assert 920 <= inside <= 965


def test_rows_that_all_change_alike_have_no_interval_and_a_single_row_has_none():
    found = compared(entry([20, 40], [10, 20]), np.array([[25.0, 10], [50, 20]]))
    assert (found["after"], found["difference"], found["low"], found["high"]) == pytest.approx((2.5, 0.5, 0.5, 0.5))
    one = entry([20], [10])
    one |= compared(one, np.array([[25.0, 10]]))
    assert one["low"] is None and line_of("x", one) == "x: lm loss 2.0000 before, 2.5000 after, +0.5000 over 1 rows"


def test_the_difference_weighs_rows_by_their_tokens():
    found = compared(entry([0, 0], [1, 99]), np.array([[1.0, 1], [0, 99]]))
    assert found["difference"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"valid": "folder"}, "valid: expected dict[str, str], found 'folder'"),
        ({"valid": {"general": Located(3, "stage.yaml:2")}}, "stage.yaml:2: valid.general: expected str, found 3"),
        ({"max_rise": 0.1}, "max_rise is 0.1; expected 0 (off), or more and sets by name in valid"),
        ({"max_rise": -0.1}, "max_rise is -0.1"),
        ({"valid_rows": 0}, "valid_rows is 0; expected 1 or more"),
        ({"on_rise": "shout"}, "on_rise: expected one of 'warn', 'stop', found 'shout'"),
        ({"replay": {"data": Located("a", "x")}}, "replay has no share; give it"),
        (
            {"replay": {"data": Located("a", "x"), "share": Located(1, "x")}},
            "share is 1.0; expected more than 0",
        ),
        (
            {"replay": {"data": Located("a", "x"), "share": Located(0, "x")}},
            "share is 0.0; expected more than 0",
        ),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(block, message):
    with pytest.raises(InputError) as refusal:
        parse_dataclass({key: Located(value, "stage.yaml:1") for key, value in block.items()}, JobOptions)[0].check()
    assert message in str(refusal.value)


def test_a_stage_that_learns_no_text_refuses_sets_and_replay():
    for options in (JobOptions(valid={"general": "a"}), JobOptions(replay=Replay("a", 0.1))):
        options.check()
        with pytest.raises(InputError, match="leave them out in this stage"):
            options.check(learns_text=False)
