"""Which requests are computed together."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_chimed.inference.batching import batches

LENGTHS = st.lists(st.integers(1, 9), max_size=60)


@given(LENGTHS, st.integers(1, 7))
def test_every_request_is_in_one_batch_and_batches_are_full(lengths, size):
    found = batches(lengths, size)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in found[:-1]) and all(found)
    in_order = [lengths[index] for batch in found for index in batch]
    assert in_order == sorted(lengths)


@given(LENGTHS, st.integers(1, 7), st.data())
def test_leaving_out_whole_batches_leaves_the_others_as_they_are(lengths, size, data):
    every = batches(lengths, size)
    left = [batch for batch in every if not data.draw(st.booleans())]
    kept = sorted(index for batch in left for index in batch)  # as a caller asks again for what it has not got
    again = batches([lengths[index] for index in kept], size)
    assert [[kept[index] for index in batch] for batch in again] == left


def test_samples_of_one_prompt_stay_together():
    assert batches([5, 5, 3, 3, 5, 5], 2) == [[2, 3], [0, 1], [4, 5]]
