"""Losses as (sum, count, report): summed over what this rank saw, normalised once, globally, by the trainer.

A mean of per-rank or per-micro-batch means would weigh a token by how many others it came with.
"""

from collections.abc import Sequence

import torch


def masked_nll(
    loss_mask: torch.Tensor, nll: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Negative log-likelihood of the unmasked target tokens, in nats.

    loss_mask and nll: the same number of elements, any shape; nll per token from the model. Returns (sum, number of
    target tokens as int64, {"lm loss": [sum, count]}), as Megatron's trainer takes it with --calculate-per-token-loss.

    >>> masked_nll(torch.tensor([[1., 0., 1.]]), torch.tensor([[2., 9., 4.]]))[:2]
    (tensor(6.), tensor(2))
    """
    mask = loss_mask.reshape(-1).float()
    total = (nll.reshape(-1).float() * mask).sum()
    count = mask.count_nonzero()
    return total, count, {"lm loss": torch.stack([total.detach(), count.to(total.dtype)])}


def response_metrics(
    labels: torch.Tensor,
    loss_mask: torch.Tensor,
    source: torch.Tensor,
    predicted: torch.Tensor | None,
    sources: Sequence[str],
    nll: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Figures of a fine-tuning batch as {name: [sum, count]}, float32; all tensors have as many elements as `labels`.

    "response accuracy": target tokens that are the most likely ones (left out without `predicted`); "fill": positions
    that are no padding (source -1; -2 is a blank row, which counts for nothing); "targets": positions whose label is
    learnt; "lm loss SOURCE": NLL of the target tokens of each of `sources`, which `source` numbers.
    """
    mask, source, nll = loss_mask.reshape(-1).float(), source.reshape(-1), nll.detach().reshape(-1).float()
    positions = (source > -2).sum().float()
    report = {
        "fill": torch.stack([(source >= 0).sum().float(), positions]),
        "targets": torch.stack([mask.sum(), positions]),
    }
    if predicted is not None:
        right = (predicted.reshape(-1) == labels.reshape(-1)).float() * mask
        report["response accuracy"] = torch.stack([right.sum(), mask.sum()])
    for number, name in enumerate(sources):
        here = mask * (source == number)
        report[f"lm loss {name}"] = torch.stack([(nll * here).sum(), here.sum()])
    return report


def ranked_pairs(rank: torch.Tensor, group: torch.Tensor, pairing: str = "adjacent") -> tuple[torch.Tensor, ...]:
    """Which answer is to beat which: (better, worse), int64 [P] places in `rank`.

    rank [K]: 0 is best; group [K]: answers of one number compete. pairing: "adjacent", the paper's: each answer and
    those of the next rank that its group has; "all": each answer and all that are ranked below it; "extremes": the best
    and the worst of a group. Equal ranks make no pair. Source: arXiv 2311.06025, "pair every two adjacent responses".

    >>> [side.tolist() for side in ranked_pairs(torch.tensor([0, 3, 1]), torch.tensor([0, 0, 0]))]
    [[0, 2], [2, 1]]
    """
    if len(rank) == 0:
        return group.new_zeros(0, dtype=torch.int64), group.new_zeros(0, dtype=torch.int64)
    same = group[:, None] == group[None, :]
    pairs = same & (rank[:, None] < rank[None, :])
    ranks = rank.expand_as(same)  # of the column's answer
    if pairing == "adjacent":
        following = ranks.masked_fill(~pairs, torch.iinfo(rank.dtype).max).amin(1, keepdim=True)
        pairs &= ranks == following
    elif pairing == "extremes":
        best = ranks.masked_fill(~same, torch.iinfo(rank.dtype).max).amin(1)
        worst = ranks.masked_fill(~same, -1).amax(1)
        pairs &= (rank == best)[:, None] & (rank == worst)[None, :]
    return pairs.nonzero(as_tuple=True)


def pairwise_ranking(
    rewards: torch.Tensor, rank: torch.Tensor, better: torch.Tensor, worse: torch.Tensor, *, margin: float = 0.0,
    center_rewards_coefficient: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Sum the pairwise ranking loss, -log sigmoid(better - worse - margin) + coefficient (better + worse)^2.

    rewards [K] float and rank [K] of K answers; better and worse [P]: places in them, from `ranked_pairs`. margin: for
    each rank between the two. center_rewards_coefficient: keeps rewards near 0, which the loss itself leaves open.
    Returns (sum [], number of pairs [] int64).
    Source: arXiv 2311.06025, section on the reward model; margin: arXiv 2307.09288, equation 2; centred rewards: arXiv
    2312.09244.
    """
    distance = rewards[better] - rewards[worse] - margin * (rank[worse] - rank[better])
    total = torch.nn.functional.softplus(-distance).sum()
    if center_rewards_coefficient:
        total = total + center_rewards_coefficient * (rewards[better] + rewards[worse]).square().sum()
    return total, torch.tensor(len(better), device=rewards.device)
