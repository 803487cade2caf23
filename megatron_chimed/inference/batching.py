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
