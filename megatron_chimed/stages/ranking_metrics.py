"""How well rewards order ranked answers: figures of a batch as {name: [sum, count]}, and what follows from their means.

Figures that are no means themselves, such as a correlation, are made of moments that are: `report` gives these, the
trainer adds them up over batches and ranks, and `derive` makes the figures of the whole.
"""

import math

import torch

from megatron_chimed.stages.losses import ranked_pairs

BINS = 10
"""Bins of the calibration error, over the probability 0.5 to 1 that the model gives to the answer it prefers."""

_MOMENT = "moment "
_LENGTH_MOMENTS = ("reward", "length", "reward2", "length2", "reward x length")


def report(
    rewards: torch.Tensor, rank: torch.Tensor, group: torch.Tensor, length: torch.Tensor, num_ranks: int
) -> dict[str, torch.Tensor]:
    """Figures and moments of K answers, float32 [sum, count] each; the names depend on num_ranks alone.

    rewards [K]; rank [K]: 0 is best; group [K]: number of the question; length [K]: tokens of the answer.

    "accuracy i>j": pairs of ranks i and j = i + 1 whose better answer has the higher reward; "best over worst": the
    same for the best and the worst of a group; "exact order": groups all of whose pairs are right; "top-1": groups
    whose highest reward is that of a best answer; "Kendall's tau": mean over groups of (right - wrong) / pairs, over
    all pairs of different rank; "reward of rank i". Equal rewards are never right, and neither right nor wrong for tau.
    """
    rewards = rewards.detach().double()
    groups, number = group.unique(return_inverse=True)
    figures = _by_pair(rewards, rank, group, num_ranks)
    better, worse = ranked_pairs(rank, group, "all")
    owner = number[better]
    right, wrong = (rewards[better] > rewards[worse]).double(), (rewards[better] < rewards[worse]).double()
    pairs = _per_group(torch.ones_like(right), owner, len(groups))
    has_pairs = pairs > 0
    tau = _per_group(right - wrong, owner, len(groups)) / pairs.clamp(min=1)
    exact = (_per_group(right, owner, len(groups)) == pairs) & has_pairs
    figures["exact order"] = (exact.double(), has_pairs)
    figures["Kendall's tau"] = (tau, has_pairs)
    figures["top-1"] = (_top_one(rewards, rank, number, len(groups)).double() * has_pairs, has_pairs)
    for level in range(num_ranks):
        here = rank == level
        figures[f"reward of rank {level}"] = (rewards * here, here)
        figures[f"{_MOMENT}reward2 of rank {level}"] = (rewards.square() * here, here)
    length = length.double()
    moments = (rewards, length, rewards.square(), length.square(), rewards * length)
    every = torch.ones_like(rewards)
    figures |= {_MOMENT + name: (values, every) for name, values in zip(_LENGTH_MOMENTS, moments, strict=True)}
    return {name: torch.stack([values.sum(), count.sum()]).float() for name, (values, count) in figures.items()}


def _by_pair(rewards: torch.Tensor, rank: torch.Tensor, group: torch.Tensor, num_ranks: int) -> dict:
    """Accuracies and calibration over pairs of answers, all arguments [answers]: {name: (values, counts)}, [pairs]."""
    figures = {}
    better, worse = ranked_pairs(rank, group, "adjacent")
    right = (rewards[better] > rewards[worse]).double()
    for level in range(num_ranks - 1):
        here = (rank[better] == level) & (rank[worse] == level + 1)
        figures[f"accuracy {level}>{level + 1}"] = (right * here, here)
    probability = torch.sigmoid((rewards[better] - rewards[worse]).abs())
    place = ((probability - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    for number in range(BINS):
        gap = (right - probability) * (place == number)
        figures[f"{_MOMENT}calibration {number}"] = (gap, torch.ones_like(gap))
    better, worse = ranked_pairs(rank, group, "extremes")
    right = (rewards[better] > rewards[worse]).double()
    figures["best over worst"] = (right, torch.ones_like(right))
    return figures


def _per_group(values: torch.Tensor, owner: torch.Tensor, groups: int) -> torch.Tensor:
    """Sums [groups] of values by their owner."""
    return values.new_zeros(groups).index_add(0, owner, values)


def _top_one(rewards: torch.Tensor, rank: torch.Tensor, number: torch.Tensor, groups: int) -> torch.Tensor:
    """Whether the highest reward of each group belongs to best answers alone, bool [groups]."""
    best = torch.full((groups,), torch.iinfo(rank.dtype).max, dtype=rank.dtype, device=rank.device)
    best = best.scatter_reduce(0, number, rank, "amin")
    highest = [rewards.new_full((groups,), -math.inf) for _ in range(2)]
    is_best = rank == best[number]
    of_best = highest[0].scatter_reduce(0, number[is_best], rewards[is_best], "amax")
    of_others = highest[1].scatter_reduce(0, number[~is_best], rewards[~is_best], "amax")
    return of_best > of_others


def derive(figures: dict[str, float]) -> dict[str, float]:
    """Means of `report`'s sums -> figures for people: moments give way to what is made of them.

    "spread of rank i": standard deviation of its rewards; "reward-length correlation": Pearson's; "calibration error":
    expected calibration error (ECE) of the probability sigmoid(difference) that the preferred answer is the better one.
    A figure of which nothing was seen is left out.
    """
    means = {name: float(value) for name, value in figures.items()}
    shown = {name: value for name, value in means.items() if not name.startswith(_MOMENT) and not math.isnan(value)}
    moments = {name.removeprefix(_MOMENT): value for name, value in means.items() if name.startswith(_MOMENT)}
    if not moments:
        return shown
    for name, value in moments.items():
        if " of rank " in name and not math.isnan(value):
            level = name.rsplit(" ", 1)[1]
            shown[f"spread of rank {level}"] = math.sqrt(max(value - means[f"reward of rank {level}"] ** 2, 0.0))
    reward, length, reward2, length2, product = (moments[name] for name in _LENGTH_MOMENTS)
    variances = (reward2 - reward**2) * (length2 - length**2)
    if variances > 0:
        shown["reward-length correlation"] = (product - reward * length) / math.sqrt(variances)
    gaps = [value for name, value in moments.items() if name.startswith("calibration ")]
    if not any(map(math.isnan, gaps)):
        shown["calibration error"] = sum(map(abs, gaps))
    return shown
