"""Which requests are computed together: a pure function of the lengths, so that a resumed run gets the same bits.

In floating point a row's result may depend, in its last bits, on the other rows of its batch. Whoever wants the same
bits after an interruption asks for whole batches again: with the same batch size, and the same order of requests,
leaving out whole batches of `batches` leaves all others as they are.
"""

from collections.abc import Sequence


def batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of `lengths`, the prompts' numbers of tokens, cut into batches.

    Shortest first, requests of one length in their given order; all batches are full but the last. Prompts of a batch
    thus have nearly one length, and samples of one prompt that follow each other stay together.

    batches([7, 5, 7, 6], batch_size=2) == [[1, 3], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def passes(lengths: Sequence[int], num_tokens: int) -> list[slice]:
    """Sequences of one batch that a forward pass pads to one length: neighbours, at most `num_tokens` with the padding,
    or a single one.

    passes([2, 3, 3, 9, 1], num_tokens=8) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    """
    found, start, longest = [], 0, 0
    for number, length in enumerate(lengths):
        longest = max(longest, length)
        if number > start and (number - start + 1) * longest > num_tokens:
            found.append(slice(start, number))
            start, longest = number, length
    return [*found, slice(start, len(lengths))] if lengths else []
