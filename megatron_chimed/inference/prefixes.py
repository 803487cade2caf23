"""Sequences that begin alike, as packed rows in which what they share stands once. No torch.

In lexicographic order those that share most are neighbours. A document of a row is one sequence whole, and behind it
branches: what the next ones have beyond the tokens that they share with it (`models.branches`).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Placed(NamedTuple):
    """Where a sequence stands in its row: its first `shared` tokens from `first` on, the others from `own` on."""

    number: int
    first: int
    shared: int
    own: int

    def place(self, token: int) -> int:
        """The place in the row of the sequence's token of that number."""
        return self.first + token if token < self.shared else self.own + token - self.shared

    def places(self, length: int) -> list[int]:
        """Those of its first `length` tokens, which are more than `shared`."""
        return [*range(self.first, self.first + self.shared), *range(self.own, self.own + length - self.shared)]


class Row(NamedTuple):
    """tokens and their positions, [t] each, and the sequences."""

    tokens: list[int]
    positions: list[int]
    sequences: list[Placed]


def ordered(sequences: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Numbers of sequences in lexicographic order, cut into batches, all full but the last: a pure function of them.

    ordered([[5, 7], [4], [5, 6]], batch_size=2) == [[1, 2], [0]]
    """
    order = sorted(range(len(sequences)), key=lambda number: tuple(sequences[number]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def rows_of(sequences: Sequence[Sequence[int]], num_tokens: int) -> Iterator[Row]:
    """Rows of at most `num_tokens` tokens, or of a single sequence.

    A sequence starts a document of its own when it shares nothing with the document's, or twice as much with the next
    one: answers may begin alike, but what all of them share is their prompt.
    """
    order = [number for batch in ordered(sequences, max(1, len(sequences))) for number in batch]
    row, first, head = Row([], [], []), 0, []
    for place, number in enumerate(order):
        sequence = sequences[number]
        shared = common(head, sequence[:-1])
        following = common(sequence, sequences[order[place + 1]]) if place + 1 < len(order) else 0
        if following >= 2 * shared:
            shared = 0
        if row.tokens and len(row.tokens) + len(sequence) - shared > num_tokens:
            yield row
            row, shared = Row([], [], []), 0
        if not shared:
            first, head = len(row.tokens), sequence
        row.sequences.append(Placed(number, first, shared, len(row.tokens)))
        row.tokens.extend(sequence[shared:])
        row.positions.extend(range(shared, len(sequence)))
    if row.tokens:
        yield row


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share from their beginnings on."""
    both = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(both) if a != b), min(len(one), len(other)))
