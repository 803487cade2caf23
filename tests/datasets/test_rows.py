"""Rows of a token stream against a twin that writes the whole stream out as lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_chimed.datasets import rows

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any).map(np.array)
SEEDS = st.integers(0, 2**31)


def twin_epoch(lengths, seed, epoch):
    """The tokens of an epoch as (document, place in the document), in reading order."""
    order = rows.permutation(len(lengths), seed, epoch, rows.DOCUMENT_ORDER)
    return [(int(document), place) for document in order for place in range(lengths[document])]


@given(LENGTHS, SEEDS, st.integers(0, 3), st.data())
def test_pieces_are_the_tokens_between_two_places_of_an_epoch(lengths, seed, number, data):
    epoch = rows.build_epoch(lengths, seed, number, 4)
    written_out = twin_epoch(lengths, seed, number)
    start = data.draw(st.integers(0, len(written_out) - 1))
    stop = data.draw(st.integers(start + 1, len(written_out)))
    documents, skips, counts = rows.find_pieces(epoch, start, stop)
    assert (counts > 0).all()
    pieces = [
        (document, skip + place)
        for document, skip, count in zip(documents.tolist(), skips.tolist(), counts.tolist(), strict=True)
        for place in range(count)
    ]
    assert pieces == written_out[start:stop]


def test_find_pieces_does_what_its_docstring_says():
    epoch = rows.Epoch(np.array([0, 1]), np.array([3, 8]), np.array([0]))
    assert [part.tolist() for part in rows.find_pieces(epoch, 2, 6)] == [[0, 1], [2, 0], [1, 3]]


@given(LENGTHS, SEEDS, st.integers(0, 5))
def test_every_document_with_tokens_is_in_an_epoch_once(lengths, seed, number):
    epoch = rows.build_epoch(lengths, seed, number, 4)
    assert sorted(epoch.order) == np.flatnonzero(lengths).tolist()
    assert epoch.ends[-1] == lengths.sum()


@given(st.integers(1, 50), st.integers(1, 20))
def test_every_sample_starts_in_one_epoch_and_each_epoch_shuffles_its_own(num_tokens, sequence_length):
    after_the_last = 0
    for number in range(8):
        samples = rows.samples_of_epoch(number, num_tokens, sequence_length)
        assert samples.start == after_the_last
        assert all(sample * sequence_length // num_tokens == number for sample in samples)
        shuffle = rows.build_epoch(np.array([num_tokens]), 1, number, sequence_length).shuffle
        assert sorted(shuffle) == list(range(len(samples)))
        after_the_last = samples.stop


def test_an_order_is_its_seed_s_and_its_epoch_s_own():
    def order(seed, epoch, purpose=rows.DOCUMENT_ORDER):
        return rows.permutation(100, seed, epoch, purpose).tolist()

    assert order(7, 0) == order(7, 0)
    different = [order(7, 0), order(7, 1), order(8, 0), order(0, 7), order(7, 0, rows.SAMPLE_ORDER)]
    assert len({tuple(one) for one in different}) == len(different)


def test_the_order_is_the_one_that_earlier_releases_drew():
    """A change here would make every run that is resumed read its corpus in another order."""
    assert rows.permutation(10, 1234, 2, rows.DOCUMENT_ORDER).tolist() == GOLDEN


GOLDEN = [8, 2, 4, 6, 7, 9, 0, 3, 5, 1]


@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_masks_and_positions_equal_counting_by_hand(starts_here):
    length = len(starts_here) - 1
    starts = np.flatnonzero(starts_here)
    mask, positions, position = [], [], 0
    for place in range(length):
        mask.append(0.0 if starts_here[place + 1] else 1.0)
        position = 0 if place == 0 or starts_here[place] else position + 1
        positions.append(position)
    assert rows.mask_last_tokens(starts, length).tolist() == mask
    assert rows.restart_positions(starts, length).tolist() == positions


def test_restart_positions_does_what_its_docstring_says():
    assert rows.restart_positions(np.array([2, 5]), 6).tolist() == [0, 1, 0, 1, 2, 0]
