"""Log-likelihoods and rewards of whole sequences, one forward pass for a batch of them."""

from collections.abc import Sequence

import torch
from megatron.core.models.gpt import GPTModel

from megatron_chimed.inference.decode import evaluating, hidden_states, logits_of, padded

LOGIT_ROWS = 1024
"""Positions whose logits are held at once, in float32 over the whole vocabulary."""


@torch.no_grad()
def loglikelihoods(
    model: GPTModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], num_ids: int
) -> list[tuple[float, bool]]:
    """For each (context, continuation): the sum of log p of the continuation's tokens, and whether each of them is the
    most likely one. Both have at least one token; pairs with the same input share its computation."""
    with evaluating(model):
        inputs = {(*context, *continuation[:-1]): 0 for context, continuation in pairs}
        inputs = {tokens: number for number, tokens in enumerate(inputs)}
        states = _states(model, list(inputs))
        places, targets = [], []
        for context, continuation in pairs:
            row, first = inputs[*context, *continuation[:-1]], len(context) - 1
            places += [(first + step, row) for step in range(len(continuation))]
            targets += continuation
        place, target = torch.tensor(places, device=states.device).T, torch.tensor(targets, device=states.device)
        scores = []
        for position, row, wanted in zip(*(t.split(LOGIT_ROWS) for t in (*place, target)), strict=True):
            logits = logits_of(model, states[position, row])[:, :num_ids].float()
            scores.append(
                torch.stack(
                    [
                        logits.log_softmax(dim=-1).gather(-1, wanted[:, None])[:, 0].double(),
                        (logits.argmax(dim=-1) == wanted).double(),
                    ]
                )
            )
        by_pair = torch.cat(scores, dim=1).split([len(continuation) for _, continuation in pairs], dim=1)
        return [(score[0].sum().item(), bool(score[1].all())) for score in by_pair]


@torch.no_grad()
def rewards(model: GPTModel, head: torch.Tensor, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The reward of each sequence: head [1, hidden] on the state of its last token."""
    with evaluating(model):
        states = _states(model, sequences)
        rows = torch.arange(len(sequences), device=states.device)
        last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=states.device)
        return (states[last, rows].float() @ head.float().T)[:, 0].tolist()


def _states(model: GPTModel, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """States [longest, n, hidden] behind the last layer, of sequences padded at their ends: what is causal does not
    see the padding."""
    tokens, _ = padded(sequences, next(model.parameters()).device)
    positions = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
    return hidden_states(model, tokens, positions, tokens.size(1))
