"""Packing: each sample in exactly one row, no row too full, no more rows than the slow plain algorithm makes."""

import doctest
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import best_fit_decreasing as plain_best_fit
from support.reference import fewest_rows

from megatron_chimed.packing import bin_packing
from megatron_chimed.packing.bin_packing import lower_bound, pack

CAPACITY = 20
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=60)


def log_normal(count: int, seed: int = 0) -> np.ndarray:
    """Lengths shaped like a set of medical questions and answers, in tokens: 16 to 4096, mean about 430."""
    drawn = np.random.default_rng(seed).lognormal(5.8, 0.75, count)
    return np.clip(drawn, 16, 4096).astype(np.int64)


def rows_of(lengths, capacity, seed=0) -> list[list[int]]:
    packed = pack(np.array(lengths, np.int64), capacity, seed)
    bounds = zip(packed.row_offsets[:-1], packed.row_offsets[1:], strict=True)
    return [packed.order[start:end].tolist() for start, end in bounds]


def check_packing(lengths, capacity, seed=0) -> list[list[int]]:
    """Assert what must hold for any packing; returns its rows."""
    rows = rows_of(lengths, capacity, seed)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(row for row in rows)
    assert all(sum(lengths[sample] for sample in row) <= capacity for row in rows)
    return rows


@given(LENGTHS, st.integers(0, 2**32))
def test_every_sample_is_in_exactly_one_row_and_no_row_is_too_full(lengths, seed):
    check_packing(lengths, CAPACITY, seed)


@given(LENGTHS)
@settings(max_examples=300)
def test_the_runs_fill_rows_exactly_as_the_plain_algorithm_does(lengths):
    """Among rows with the same space either may be taken, so what is compared is how full the rows are."""
    histogram = np.bincount(np.array(lengths, np.int64), minlength=CAPACITY + 1)
    places = bin_packing.best_fit_decreasing(histogram, CAPACITY)
    assert Counter(places.lengths.tolist()) == Counter(lengths)
    filled = np.bincount(places.rows, weights=places.lengths).astype(int).tolist()
    assert sorted(filled) == sorted(map(sum, plain_best_fit(lengths, CAPACITY)))


@given(LENGTHS)
def test_there_are_never_more_rows_than_plain_best_fit_decreasing_makes(lengths):
    assert len(rows_of(lengths, CAPACITY)) <= len(plain_best_fit(lengths, CAPACITY))


def test_on_many_samples_there_are_fewer_rows_than_the_plain_algorithm_makes():
    lengths = np.random.default_rng(0).integers(50, 200, 3000).tolist()
    ours, plain = len(check_packing(lengths, 513)), len(plain_best_fit(lengths, 513))
    assert lower_bound(np.array(lengths), 513) <= ours < plain


@given(st.lists(st.integers(1, CAPACITY), max_size=8))
def test_the_lower_bound_is_never_above_the_fewest_rows_possible(lengths):
    bound, fewest = lower_bound(np.array(lengths, np.int64), CAPACITY), fewest_rows(lengths, CAPACITY)
    assert -(-sum(lengths) // CAPACITY) <= bound <= fewest


def test_the_lower_bound_sees_more_than_the_number_of_tokens():
    assert lower_bound(np.array([11, 11, 11]), 20) == 3  # 33 tokens would fit into two rows
    assert lower_bound(np.array([16, 16, 5, 5]), 20) == 3


def test_lengths_like_a_real_set_are_packed_within_two_hundredths_of_a_percent_of_the_bound():
    lengths = log_normal(50_000)
    rows = check_packing(lengths.tolist(), 4096)
    assert lower_bound(lengths, 4096) / len(rows) >= 0.9998


def test_the_seed_decides_who_goes_where_and_nothing_else():
    lengths = log_normal(2000).tolist()
    same, again, other = rows_of(lengths, 4096, 1), rows_of(lengths, 4096, 1), rows_of(lengths, 4096, 2)
    assert same == again != other
    assert len(same) == len(other)
    by_length = [sorted(sorted(lengths[sample] for sample in row) for row in rows) for rows in (same, other)]
    assert by_length[0] == by_length[1]


def test_a_packing_is_the_one_that_earlier_releases_made():
    """A change here would give every packed dataset that is built again other rows."""
    assert rows_of([3, 2, 2, 1, 4, 1, 1], 5, seed=7) == GOLDEN


GOLDEN = [[1, 0], [4, 5], [6, 2, 3]]


def test_pack_does_what_its_docstring_says():
    assert sorted(sorted(row) for row in rows_of([3, 2, 2, 1], 4)) == [[0, 3], [1, 2]]


@pytest.mark.parametrize("lengths", [[0, 3], [5, CAPACITY + 1], [-1]])
def test_a_length_that_fits_no_row_is_refused(lengths):
    with pytest.raises(ValueError, match="expected 1 to the capacity"):
        pack(np.array(lengths), CAPACITY, 0)


@given(st.lists(st.integers(1, 70_000), min_size=10, max_size=60))
@settings(max_examples=12)  # each takes a tenth of a second for the spaces that a row can have
def test_capacities_above_sixteen_bits_are_sorted_as_well(lengths):
    check_packing(lengths, 70_000)


def test_any_part_of_the_rows_is_a_fair_sample():
    """Best fit decreasing opens the rows of the longest samples first; a split by rows must not take only those."""
    lengths = np.concatenate([np.full(500, 60), np.full(5000, 6)])
    packing = pack(lengths, 100, seed=3)
    longest = np.array([lengths[packing.order[a:b]].max() for a, b in pairwise(packing.row_offsets)])
    assert len(longest) > 500 and 0 < (longest[-100:] == 60).sum() < 100


def test_the_worked_example_in_the_docstring_is_true():
    assert doctest.testmod(bin_packing) == doctest.TestResults(failed=0, attempted=1)
