"""Replay: its share of any number of samples, each of either side once and in order, blends inside left as they are."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.pretrain_corpus import config_of, contents, train_set, write_corpus

from megatron_chimed.datasets.replay import ReplayMix


class Numbered:
    """Samples that are their own numbers."""

    def __init__(self, name: str, size: int = 10**6):
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"tokens": torch.tensor([number])}

    def place(self, number: int) -> tuple[str, int]:
        return self.name, number


@given(st.integers(1, 99).map(lambda hundredths: hundredths / 100), st.integers(0, 500))
def test_the_first_samples_hold_the_share_whatever_their_number_and_each_once_in_order(share, count):
    mix = ReplayMix(Numbered("train"), Numbered("replay"), share)
    places = [mix.place(index) for index in range(count)]
    for name in ("train", "replay"):
        numbers = [number for place, number in places if place == name]
        assert numbers == list(range(len(numbers)))
    assert sum(place == "replay" for place, _ in places) == Fraction(str(share)) * count // 1
    assert [mix[index]["tokens"].item() for index in range(count)] == [number for _, number in places]


def test_a_share_that_no_float_holds_is_exact_after_any_number_of_samples():
    mix = ReplayMix(Numbered("train"), Numbered("replay"), 0.29)
    for end in (100, 10**9):
        assert mix.place(end - 1) == ("replay", end * 29 // 100 - 1)
    assert int(100 * 0.29) == 28, "the control: a float comes out below"


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_weights_of_several_paths_hold_among_what_is_no_replay(tmp_path, share):
    prefixes = [write_corpus(tmp_path, name, [[40], [40]], first)[0] for name, first in (("a", 0), ("b", 500))]
    other = write_corpus(tmp_path, "old", [[40], [40]], 1000)[0]
    blend = train_set(config_of(prefixes, [3.0, 1.0]), 400)
    mix = ReplayMix(blend, train_set(config_of(other), 200), share)
    counts = Counter(mix.place(index)[0] for index in range(400))
    fresh = 400 - int(400 * share)
    assert counts[other] == 400 - fresh
    assert abs(counts[prefixes[0]] - fresh * 3 / 4) <= 1 and counts[prefixes[1]] == fresh - counts[prefixes[0]]
    assert {frozenset(mix[index]) for index in range(40)} == {frozenset(train_set(config_of(other), 1)[0])}
    fresh_ones = [mix[index] for index in range(40) if mix.place(index)[0] != other]
    expected = [{name: one for name, one in blend[n].items() if name != "dataset_id"} for n in range(len(fresh_ones))]
    assert contents(fresh_ones) == contents(expected)
