"""Losses of direct preference optimization on ranked answers, as (sum, count); pure functions of log-probabilities.

The implicit reward of an answer is beta (log p - log p of the reference), in nats. Sources: DPO, arXiv 2305.18290 (its
appendix A.3 has the Plackett-Luce form); label smoothing as in conservative DPO; length-normalized DPO, arXiv
2411.15124, section 5; the term of fine-tuning, RPO, arXiv 2404.19733.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import softplus


def answer_log_p(nll: torch.Tensor, loss_mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """The log-probability of each answer, in nats, float64 [answers].

    nll: of the token behind each, [tokens]; loss_mask: 1 where that token is an answer's; scored: true at the last
    token of each answer, behind all that predict it.

    >>> nll, mask = torch.tensor([9.0, 1, 2, 9, 4, 9]), torch.tensor([0, 1, 1, 0, 1, 0])
    >>> answer_log_p(nll, mask, torch.tensor([False, False, False, True, False, True])).tolist()
    [-3.0, -4.0]
    """
    place = scored.long().cumsum(0) - scored.long()
    mask = loss_mask > 0
    sums = nll.new_zeros(int(scored.sum()), dtype=torch.float64)
    return -sums.index_add(0, place[mask], nll[mask].double())


def pair_losses(rewards: torch.Tensor, better: torch.Tensor, worse: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Loss of each pair [P] of places in the implicit rewards [A]: -log sigmoid(difference), where with a probability
    of `smoothing` the pair counts the other way round."""
    difference = rewards[better] - rewards[worse]
    return (1 - smoothing) * softplus(-difference) + smoothing * softplus(difference)


def questions_of(rank: torch.Tensor, group: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """The answers of each group that has two ranks or more: their places, a tensor for each rank, the best first."""
    for number in group.unique():
        here = (group == number).nonzero()[:, 0]
        levels = rank[here].unique()
        if len(levels) > 1:
            yield [here[rank[here] == level] for level in levels]


def plackett_luce(rewards: torch.Tensor, question: list[torch.Tensor]) -> torch.Tensor:
    """-log of the probability that one after the other is drawn in the order of a question's ranks, [].

    Each is drawn among those left with a probability in proportion to exp(reward). Of answers of equal rank any order
    will do: their probabilities are added up.
    """
    total = rewards.new_zeros(())
    for place, level in enumerate(question[:-1]):
        later = rewards[torch.cat(question[place + 1 :])].logsumexp(0)
        total = total - _log_first(rewards[level], later, {})
    return total


def _log_first(first: torch.Tensor, later: torch.Tensor, known: dict[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
    """Log of the probability that all of `first`, [n] log weights, are drawn before anything of the log weight
    `later`, []; a sum over the one that is drawn first, each subset computed once."""

    def left(numbers: tuple[int, ...]) -> torch.Tensor:
        if numbers not in known:
            every = torch.cat([first[list(numbers)], later[None]]).logsumexp(0)
            one_by_one = [first[one] - every + left(tuple(n for n in numbers if n != one)) for one in numbers]
            known[numbers] = torch.stack(one_by_one).logsumexp(0)
        return known[numbers]

    known[()] = later.new_zeros(())
    return left(tuple(range(len(first))))
