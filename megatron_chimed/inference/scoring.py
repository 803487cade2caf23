"""Log-likelihoods and rewards of whole sequences.

Sequences are padded at their ends, which what is causal does not see. Where they come sorted by length, as from the
engine, this is as fast on a CPU as packing them into rows with boundaries.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from megatron.core.models.gpt import GPTModel

from megatron_chimed.inference.batching import passes
from megatron_chimed.inference.decode import TOKENS_PER_PASS, evaluating, hidden_states, logits_of, padded
from megatron_chimed.models.reward import RewardModel

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
    for part, states in _states(model, inputs):
        for column, tokens in enumerate(inputs[part]):
            for number in asking[tokens]:
                context, continuation = pairs[number]
                behind = states[len(context) - 1 : len(tokens), column]
                scores[number] = _score(model, behind, continuation, num_ids)
    return scores


def _score(model: GPTModel, states: torch.Tensor, tokens: Sequence[int], num_ids: int) -> tuple[float, bool]:
    """states [n, hidden] in front of each of the tokens [n] -> (sum of log p, whether all are the most likely)."""
    logits = logits_of(model, states)[:, :num_ids].float()
    wanted = torch.tensor(tokens, device=logits.device)
    log_p = logits.log_softmax(dim=-1).gather(-1, wanted[:, None])
    return log_p.double().sum().item(), bool((logits.argmax(dim=-1) == wanted).all())


@torch.no_grad()
def rewards(model: RewardModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The reward of each sequence, at its last token."""
    found = []
    for part, states in _states(model, sequences):
        last = torch.tensor([len(sequence) - 1 for sequence in sequences[part]], device=states.device)
        found += model.reward_head(states).gather(1, last[:, None])[:, 0].tolist()
    return found


def _states(model: GPTModel, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some sequences after the other: which, and the states behind the last layer [longest of them, number, hidden]."""
    device = next(model.parameters()).device
    with evaluating(model):
        for part in passes([len(sequence) for sequence in sequences], TOKENS_PER_PASS[device.type]):
            tokens, positions, _ = padded(sequences[part], device)
            yield part, hidden_states(model, tokens, positions, tokens.size(1))
