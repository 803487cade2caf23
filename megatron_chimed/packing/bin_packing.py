"""Pack samples into rows by best-fit decreasing over a histogram of lengths, over all samples at once.

Best fit decreasing takes samples from the longest to the shortest and puts each into the row with the least space that
still holds it. Samples of one length are alike, and so are rows of one remaining space: the samples of a length are
placed in runs, as many rows at a time as there are of a space. It runs out of short samples before all rows are full;
the rows that it leaves with space are taken apart and made again, each ended by one or two samples that fill it to the
token. Only then a seed decides which sample of a length gets which of its places. A million samples take a second.
"""

from typing import NamedTuple

import numpy as np


class Packing(NamedTuple):
    """R rows of N samples; int64 arrays.

    order: [N] sample numbers, row by row; row_offsets: [R+1]: row r holds order[row_offsets[r] : row_offsets[r+1]].
    """

    order: np.ndarray
    row_offsets: np.ndarray


class Places(NamedTuple):
    """Where samples go, before it is said which: a place in row rows[i] for a sample of lengths[i]; int64 [N] each."""

    lengths: np.ndarray
    rows: np.ndarray


class _Rows:
    """Rows by the space they have left. Rows are numbered as they are opened."""

    def __init__(self, capacity: int):
        self.capacity, self.count = capacity, 0
        self.by_space: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]  # stacks of arrays of row numbers
        self.spaces = 0  # bit s is set if rows with space s are there

    def tightest(self, length: int) -> int | None:
        """The least space that holds `length`, None if no open row does."""
        fitting = self.spaces >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else None

    def open(self, count: int) -> None:
        """Open empty rows."""
        self.put(self.capacity, np.arange(self.count, self.count + count))
        self.count += count

    def put(self, space: int, rows: np.ndarray) -> None:
        """Give rows, [n] numbers, their new space."""
        if space and len(rows):
            self.by_space[space].append(rows)
            self.spaces |= 1 << space

    def take(self, space: int, limit: int) -> np.ndarray:
        """Take away up to `limit` rows of a space, [n] numbers: those of the array that came last."""
        stack = self.by_space[space]
        rows = stack.pop()
        if len(rows) > limit:
            stack.append(rows[limit:])
            rows = rows[:limit]
        if not stack:
            self.spaces &= ~(1 << space)
        return rows


def pack(lengths: np.ndarray, capacity: int, seed: int) -> Packing:
    """Pack every sample into one row of at most `capacity` tokens.

    lengths: [N] tokens of each sample. The number of rows depends on the lengths alone; which sample stands where, and
    the order of and within rows, depend on the seed too. Lengths [3, 2, 2, 1] and capacity 4 make two rows, {3, 1} and
    {2, 2}. Raises ValueError for a length below 1 or above the capacity: the caller has to drop those.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()}; expected 1 to the capacity, {capacity}")
    histogram = np.bincount(lengths, minlength=capacity + 1)
    places = refill_rows(best_fit_decreasing(histogram, capacity), capacity, _lower_bound(histogram, capacity))
    num_rows = int(places.rows.max(initial=-1)) + 1
    # Rows in the order in which they were opened have the longest samples first, and a split would be no fair one.
    rows = _permutation(num_rows, seed)[places.rows]
    shuffled = _permutation(len(lengths), seed)
    # In order of length, samples in seeded order and places agree one to one.
    row_of_sample = np.empty(len(lengths), np.int64)
    samples = shuffled[_stable_order(lengths[shuffled], capacity)]
    row_of_sample[samples] = rows[_stable_order(places.lengths, capacity)]
    order = shuffled[_stable_order(row_of_sample[shuffled], num_rows)]
    sizes = np.bincount(rows, minlength=num_rows)
    return Packing(order, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def best_fit_decreasing(histogram: np.ndarray, capacity: int) -> Places:
    """Pack by plain best fit decreasing. histogram: [capacity + 1] int64 samples of each length, none of length 0."""
    rows, lengths, placed = _Rows(capacity), [], [np.zeros(0, np.int64)]
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            space = rows.tightest(length)
            if space is None:
                rows.open(-(-left // (capacity // length)))
                space = capacity
            # The tightest row is the tightest still after taking one, so it takes all that it holds.
            each = min(space // length, left)
            taken = rows.take(space, left // each)
            placed.append(np.repeat(taken, each))
            lengths.append(length)
            rows.put(space - each * length, taken)
            left -= each * len(taken)
    return Places(np.repeat(lengths, [len(one) for one in placed[1:]]).astype(np.int64), np.concatenate(placed))


def refill_rows(places: Places, capacity: int, bound: int) -> Places:
    """Repack the rows that are not full into fewer, if that can be; else return the places as they are.

    bound: a number of rows that cannot be undercut.
    """
    used = np.bincount(places.rows, weights=places.lengths).astype(np.int64)
    full = used == capacity
    num_open = int((~full).sum())
    if len(used) <= bound or int((capacity - used).sum()) < capacity:
        return places
    kept = full[places.rows]
    made = _fill_exactly(np.bincount(places.lengths[~kept], minlength=capacity + 1).tolist(), capacity)
    if len(made) >= num_open:
        return places
    numbers = np.cumsum(full) - 1
    new_rows = np.repeat(np.arange(len(made)) + len(used) - num_open, [len(row) for row in made])
    return Places(
        np.concatenate([places.lengths[kept], *map(np.asarray, made)]),
        np.concatenate([numbers[places.rows[kept]], new_rows]),
    )


def _fill_exactly(counts: list[int], capacity: int) -> list[list[int]]:
    """Fill rows, as lists of lengths: from the longest sample on, until one or two others fill the row to the token.

    counts: [capacity + 1] samples of each length; they are used up.

    Sets of lengths are the bits of a number, so that all pairs with a given sum are found at once. With capacity 10 and
    the lengths 6, 3, 2, 2, the set `there` is {2, 3, 6}, and `mirrored`, of 10 - length, is {8, 7, 4}. The first row
    takes 6, which leaves the space 4 and the sets {2, 3} and {8, 7}. Shifted right by 10 - 4, `mirrored` is {2, 1}: b
    is in it if a sample of 4 - b is there. Common to it and `there` is 2, so 2 and 4 - 2 fill the row; as they are one
    length, two samples of it must be left. Plain best fit would have taken 3 and left a space of 1.

    >>> _fill_exactly([0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 0], capacity=10)
    [[6, 2, 2], [3]]
    """
    there = sum(1 << length for length, count in enumerate(counts) if count)
    mirrored = sum(1 << (capacity - length) for length, count in enumerate(counts) if count)
    made = []
    while there:
        space, row = capacity, []
        while fitting := there & ((2 << space) - 1):
            lengths = [fitting.bit_length() - 1]
            if lengths[0] < space:
                half = (space + 1) // 2
                pairs = (there & (mirrored >> (capacity - space))) >> half  # bit b: half + b and its complement
                if pairs and 2 * half == space and pairs & 1 and counts[half] < 2:
                    pairs &= ~1
                if pairs and row:
                    longer = half + (pairs & -pairs).bit_length() - 1
                    lengths = [longer, space - longer]
            for length in lengths:
                row.append(length)
                space -= length
                counts[length] -= 1
                if not counts[length]:
                    there &= ~(1 << length)
                    mirrored &= ~(1 << (capacity - length))
        made.append(row)
    return made


def lower_bound(lengths: np.ndarray, capacity: int) -> int:
    """Compute a number of rows below which no packing of these lengths exists.

    The bound L2 of Martello and Toth (Lower bounds and reduction procedures for the bin packing problem, 1990), at
    least the number of tokens by the capacity: for any t, samples above capacity - t have a row to themselves, those
    above half the capacity share none with each other, and those from t on must fit beside the latter. lengths: [N],
    each from 1 to capacity.
    """
    return _lower_bound(np.bincount(np.asarray(lengths, dtype=np.int64), minlength=capacity + 1), capacity)


def _lower_bound(histogram: np.ndarray, capacity: int) -> int:
    """Compute `lower_bound` of a histogram [capacity + 1] int64."""
    count = np.cumsum(histogram)  # samples of at most so many tokens
    tokens = np.cumsum(histogram * np.arange(capacity + 1))
    half, t = capacity // 2, np.arange(1, capacity // 2 + 1)
    alone = count[-1] - count[capacity - t]
    large = count[capacity - t] - count[half]
    large_tokens = tokens[capacity - t] - tokens[half]
    small_tokens = tokens[half] - tokens[t - 1]
    more = np.maximum(0, -(-(small_tokens + large_tokens - large * capacity) // capacity))
    return int(max(-(-tokens[-1] // capacity), np.max(alone + large + more, initial=0)))


def _permutation(count: int, seed: int) -> np.ndarray:
    """Draw a seeded order, int64 [count], with RandomState: numpy froze its streams, and an upgrade changes no rows."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed]))).permutation(count)


def _stable_order(keys: np.ndarray, limit: int) -> np.ndarray:
    """Stable argsort [N] of keys [N] int64 from 0 to limit, by 16 bits at a time: numpy sorts those in linear time."""
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    if limit >> 16:
        order = order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
    return order
