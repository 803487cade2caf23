"""Log-likelihoods of continuations for any model that reads packed rows. No torch."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from megatron_chimed.inference.prefixes import Row, rows_of

Pair = tuple[Sequence[int], Sequence[int]]
Read = Callable[[Row, list[int], list[int]], tuple[Sequence[float], Sequence[bool]]]


def loglikelihoods(pairs: Sequence[Pair], num_tokens: int, read: Read) -> list[tuple[float, bool]]:
    """For each (context, continuation): the sum of log p of the continuation's tokens, in nats, and whether each is the
    most likely one. Both sides have at least one token; pairs with the same input share its computation.

    read: computes a row of at most `num_tokens` tokens, or of a single sequence. It gets n places in the row and the
    token that follows each of them, and returns log p of each, and whether it is the most likely.
    """
    asking = defaultdict(list)  # input -> numbers of the pairs: answers of one token to a question all share one
    for number, (context, continuation) in enumerate(pairs):
        asking[*context, *continuation[:-1]].append(number)
    inputs = list(asking)
    scores: list = [None] * len(pairs)
    for row in rows_of(inputs, num_tokens):
        places, wanted, numbers = [], [], []
        for placed in row.sequences:
            tokens = inputs[placed.number]
            for number in asking[tokens]:
                context, continuation = pairs[number]
                places += [placed.place(token) for token in range(len(context) - 1, len(tokens))]
                wanted += continuation
                numbers.append(number)
        values = zip(*read(row, places, wanted), strict=True)
        for number in numbers:
            log_p, greedy = zip(*itertools.islice(values, len(pairs[number][1])), strict=True)
            scores[number] = (math.fsum(log_p), all(greedy))
    return scores
