"""Log-likelihoods and rewards of whole sequences, of which what several share at their beginning is read once."""

from collections.abc import Sequence

import torch
from megatron.core.models.gpt import GPTModel

from megatron_chimed.inference import likelihoods
from megatron_chimed.inference.decode import TOKENS_PER_PASS, evaluating, logits_of, row_states
from megatron_chimed.inference.prefixes import rows_of
from megatron_chimed.models.reward import RewardModel

POSITIONS = 256
"""So many positions have logits at a time."""


@torch.no_grad()
def loglikelihoods(model: GPTModel, pairs: Sequence[likelihoods.Pair], num_ids: int) -> list[tuple[float, bool]]:
    """As `likelihoods.loglikelihoods`, of the ids below `num_ids`."""
    with evaluating(model):
        return likelihoods.loglikelihoods(
            pairs,
            TOKENS_PER_PASS[next(model.parameters()).device.type],
            lambda row, places, wanted: _score(model, row_states(model, row)[places], wanted, num_ids),
        )


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
    with evaluating(model):
        for row in rows_of(sequences, TOKENS_PER_PASS[next(model.parameters()).device.type]):
            last = [placed.place(len(sequences[placed.number]) - 1) for placed in row.sequences]
            at_last = model.reward_head(row_states(model, row)[last][None])[:, 0].tolist()
            for placed, reward in zip(row.sequences, at_last, strict=True):
                found[placed.number] = reward
    return found
