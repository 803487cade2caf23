"""Sequences that begin alike as rows: nothing is lost, what is shared stands once, and no row is too long."""

import random

from hypothesis import given
from hypothesis import strategies as st

from megatron_chimed.inference.prefixes import common, ordered, rows_of

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=30)


@given(SEQUENCES, st.integers(1, 60))
def test_every_sequence_is_read_out_of_its_row(sequences, num_tokens):
    seen = []
    for row in rows_of(sequences, num_tokens):
        assert len(row.tokens) == len(row.positions) and (len(row.tokens) <= num_tokens or len(row.sequences) == 1)
        for placed in row.sequences:
            places = [placed.place(token) for token in range(len(sequences[placed.number]))]
            assert [row.tokens[place] for place in places] == sequences[placed.number]
            assert [row.positions[place] for place in places] == list(range(len(places)))
            assert placed.shared < len(places), "a sequence has a token of its own"
            seen.append(placed.number)
    assert sorted(seen) == list(range(len(sequences)))


def test_a_prompt_stands_once_whatever_its_answers_have_in_common():
    draw = random.Random(0)
    start = [1] * 5  # what a template puts before every prompt
    prompts = [start + [draw.randrange(2, 90) for _ in range(draw.randrange(30, 60))] for _ in range(6)]
    answers = [[91] * draw.randrange(1, 4) + [draw.randrange(90) for _ in range(9)] for _ in range(8)]
    sequences = [prompt + answer for prompt in prompts for answer in answers]
    draw.shuffle(sequences)
    (row,) = rows_of(sequences, 10**6)
    least = sum(map(len, prompts)) + 6 * sum(map(len, answers))
    assert least - 6 * 8 * 3 <= len(row.tokens) <= least and row.positions.count(0) == 6
    assert sum(map(len, sequences)) > 2 * least


def test_batches_are_of_neighbours_and_do_not_depend_on_the_order_given():
    sequences = [[5, 7], [4], [5, 6], [4, 9, 9], [5]]
    assert ordered(sequences, 2) == [[1, 3], [4, 2], [0]]
    shuffled = ordered(sequences[::-1], 2)
    assert [[sequences[4 - place] for place in batch] for batch in shuffled] == [
        [sequences[place] for place in batch] for batch in ordered(sequences, 2)
    ]


def test_what_two_sequences_share_is_counted():
    assert [common([1, 2, 3], other) for other in ([1, 2, 4], [1, 2], [2], [], [1, 2, 3])] == [2, 2, 0, 0, 3]
