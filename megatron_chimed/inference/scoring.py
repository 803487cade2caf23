"""Log-likelihoods and rewards of whole sequences, of which what several share at their beginning is read once."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from megatron.core.models.gpt import GPTModel

from megatron_chimed.inference.decode import TOKENS_PER_PASS, evaluating, logits_of, row_states
from megatron_chimed.inference.prefixes import Row, rows_of
from megatron_chimed.models.reward import RewardModel

POSITIONS = 256
"""So many positions have logits at a time."""

Pair = tuple[Sequence[int], Sequence[int]]


@torch.no_grad()
def loglikelihoods(model: GPTModel, pairs: Sequence[Pair], num_ids: int) -> list[tuple[float, bool]]:
    """For each (context, continuation): the sum of log p of the continuation's tokens, in nats, and whether each is the
    most likely one. Both sides have at least one token; pairs with the same input share its computation."""
    asking = defaultdict(list)  # input -> numbers of the pairs: answers of one token to a question all share one
    for number, (context, continuation) in enumerate(pairs):
        asking[*context, *continuation[:-1]].append(number)
    inputs = list(asking)
    scores: list = [None] * len(pairs)
    for row, states in _states(model, inputs):
        places, wanted, numbers = [], [], []
        for placed in row.sequences:
            tokens = inputs[placed.number]
            for number in asking[tokens]:
                context, continuation = pairs[number]
                places += [placed.place(token) for token in range(len(context) - 1, len(tokens))]
                wanted += continuation
                numbers.append(number)
        values = zip(*_score(model, states[places], wanted, num_ids), strict=True)
        for number in numbers:
            log_p, greedy = zip(*itertools.islice(values, len(pairs[number][1])), strict=True)
            scores[number] = (math.fsum(log_p), all(greedy))
    return scores


def _score(
    model: GPTModel, states: torch.Tensor, tokens: Sequence[int], num_ids: int
) -> tuple[list[float], list[bool]]:
    """states [n, hidden] in front of each of the tokens [n] -> log p of each, and whether it is the most likely."""
    log_p, greedy = [], []
    for some, wanted in zip(states.split(POSITIONS), torch.tensor(tokens).split(POSITIONS), strict=True):
        logits, wanted = logits_of(model, some)[:, :num_ids].float(), wanted.to(some.device)
        log_p += logits.log_softmax(dim=-1).gather(-1, wanted[:, None])[:, 0].double().tolist()
        greedy += (logits.argmax(dim=-1) == wanted).tolist()
    return log_p, greedy


@torch.no_grad()
def rewards(model: RewardModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The reward of each sequence, at its last token."""
    found = [0.0] * len(sequences)
    for row, states in _states(model, sequences):
        last = [placed.place(len(sequences[placed.number]) - 1) for placed in row.sequences]
        at_last = model.reward_head(states[last][None])[:, 0].tolist()
        for placed, reward in zip(row.sequences, at_last, strict=True):
            found[placed.number] = reward
    return found


def _states(model: GPTModel, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[Row, torch.Tensor]]:
    """Some sequences after the other: their row, and the normalised states behind the last layer [tokens, hidden]."""
    with evaluating(model):
        for row in rows_of(sequences, TOKENS_PER_PASS[next(model.parameters()).device.type]):
            yield row, row_states(model, row)
