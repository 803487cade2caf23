"""Rows of a token stream: which tokens make up a sample, in which order, and what may be learnt from each.

A corpus is read epoch by epoch. An epoch is all its documents, each once, in an order of its own, end to end; the
stream is the epochs end to end. Sample i of the stream is the tokens [i*S, i*S + S]: S inputs and the label of the
last. The samples that start in an epoch are drawn in a shuffled order. Both orders depend on (seed, epoch) alone, so a
longer run repeats a shorter one and goes on from there; nothing is as long as the corpus has tokens.
"""

from typing import NamedTuple

import numpy as np

DOCUMENT_ORDER, SAMPLE_ORDER = 0, 1  # keep the two orders of one (seed, epoch) independent


class Epoch(NamedTuple):
    """One epoch of D non-empty documents in which N samples start; three int64 arrays.

    order: [D] documents as they are read; ends: [D] tokens read after each of them;
    shuffle: [N] which of the samples that start in this epoch is drawn first, second, ...
    """

    order: np.ndarray
    ends: np.ndarray
    shuffle: np.ndarray


def permutation(count: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """The order of `count` things in an epoch, int64 [count]; purpose: DOCUMENT_ORDER or SAMPLE_ORDER."""
    bits = np.random.MT19937(np.random.SeedSequence([seed, epoch, purpose]))
    # RandomState and not Generator: numpy froze its streams, so an upgrade in mid-run does not change the order.
    return np.random.RandomState(bits).permutation(count)


def samples_of_epoch(epoch: int, num_tokens: int, sequence_length: int) -> range:
    """The samples of the stream that start in an epoch of `num_tokens` tokens; empty if an earlier one spans it."""
    return range(-(-epoch * num_tokens // sequence_length), -(-(epoch + 1) * num_tokens // sequence_length))


def build_epoch(lengths: np.ndarray, seed: int, epoch: int, sequence_length: int) -> Epoch:
    """Order the documents and the samples of an epoch. lengths: tokens of each document, [documents]; not all 0."""
    order = permutation(len(lengths), seed, epoch, DOCUMENT_ORDER)
    order = order[lengths[order] > 0]
    ends = np.cumsum(lengths[order], dtype=np.int64)
    num_samples = len(samples_of_epoch(epoch, int(ends[-1]), sequence_length))
    return Epoch(order, ends, permutation(num_samples, seed, epoch, SAMPLE_ORDER))


def find_pieces(epoch: Epoch, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of documents that make up the tokens [start, stop) of an epoch, start < stop.

    Returns (documents, skips, counts), int64 [pieces]: piece k is counts[k] tokens of documents[k], its first skips[k]
    tokens left out. Two documents of 3 and 5 tokens, in this order, and [2, 6): ([0, 1], [2, 0], [1, 3]).
    """
    first = int(np.searchsorted(epoch.ends, start, side="right"))
    last = int(np.searchsorted(epoch.ends, stop, side="left"))
    ends = epoch.ends[first : last + 1]
    begins = np.concatenate([epoch.ends[first - 1 : first] if first else np.zeros(1, np.int64), ends[:-1]])
    skips = np.maximum(start - begins, 0)
    return epoch.order[first : last + 1], skips, np.minimum(ends, stop) - begins - skips


def mask_last_tokens(document_starts: np.ndarray, length: int) -> np.ndarray:
    """Loss mask, float32 [length]: 0 where the label belongs to another document than the input, else 1.

    document_starts: where documents start in the row of length + 1 tokens (inputs and the last label).
    """
    mask = np.ones(length, dtype=np.float32)
    mask[document_starts[document_starts > 0] - 1] = 0
    return mask


def restart_positions(document_starts: np.ndarray, length: int) -> np.ndarray:
    """Position ids, int64 [length], that count from 0 at the row's start and again at each document's start.

    Starts [2, 5] in a row of 6: [0, 1, 0, 1, 2, 0].
    """
    latest_start = np.zeros(length, dtype=np.int64)
    starts = document_starts[document_starts < length]
    latest_start[starts] = starts
    return np.arange(length) - np.maximum.accumulate(latest_start)
