"""Pairs, loss and figures of ranked answers against slow twins: double loops in float64, and scipy."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr

from megatron_chimed.stages.losses import pairwise_ranking, ranked_pairs
from megatron_chimed.stages.ranking_metrics import BINS, derive, report

GROUPS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), max_size=5)


def flat(groups: list[list[int]], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rewards [K] float64, rank, group) of groups of ranks, in mixed order."""
    draw = random.Random(seed)
    rows = [(draw.gauss(0, 2), rank, number) for number, ranks in enumerate(groups) for rank in ranks]
    draw.shuffle(rows)
    rewards, rank, group = zip(*rows, strict=True) if rows else ((), (), ())
    as_int = {"dtype": torch.int64}
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(rank, **as_int), torch.tensor(group, **as_int)


def naive_pairs(rank: list[int], group: list[int], pairing: str) -> set[tuple[int, int]]:
    """Pairs by the definition, one group after the other."""
    pairs = set()
    for number in set(group):
        members = [place for place, owner in enumerate(group) if owner == number]
        levels = sorted({rank[place] for place in members})
        wanted = {
            "adjacent": list(zip(levels, levels[1:], strict=False)),
            "all": [(one, other) for one in levels for other in levels if one < other],
            "extremes": [(levels[0], levels[-1])] if len(levels) > 1 else [],
        }[pairing]
        pairs |= {(i, j) for i in members for j in members if (rank[i], rank[j]) in wanted}
    return pairs


@pytest.mark.parametrize("pairing", ["adjacent", "all", "extremes"])
@given(groups=GROUPS)
def test_pairs_are_those_of_the_definition(groups, pairing):
    _, rank, group = flat(groups)
    better, worse = ranked_pairs(rank, group, pairing)
    found = list(zip(better.tolist(), worse.tolist(), strict=True))
    assert set(found) == naive_pairs(rank.tolist(), group.tolist(), pairing) and len(set(found)) == len(found)


def test_four_ranks_make_three_pairs_and_ties_none():
    assert len(ranked_pairs(torch.tensor([0, 1, 2, 3]), torch.zeros(4, dtype=torch.int64))[0]) == 3
    for pairing in ("adjacent", "all", "extremes"):
        better, _ = ranked_pairs(torch.tensor([1, 1, 1]), torch.zeros(3, dtype=torch.int64), pairing)
        assert len(better) == 0, "answers of one rank make no pair"


@given(groups=GROUPS, margin=st.sampled_from([0.0, 0.5]), center_rewards_coefficient=st.sampled_from([0.0, 0.01]))
def test_the_loss_and_its_gradient_are_those_of_a_double_loop_in_float64(groups, margin, center_rewards_coefficient):
    rewards, rank, group = flat(groups)
    results = []
    for rounded in (torch.float32, torch.float64):
        leaf = rewards.to(rounded).requires_grad_()
        if rounded == torch.float32:
            better, worse = ranked_pairs(rank, group)
            total, count = pairwise_ranking(
                leaf, rank, better, worse, margin=margin, center_rewards_coefficient=center_rewards_coefficient
            )
        else:
            total, count = torch.zeros((), dtype=rounded) + 0 * leaf.sum(), 0
            for i, j in sorted(naive_pairs(rank.tolist(), group.tolist(), "adjacent")):
                ahead = leaf[i] - leaf[j] - margin * (rank[j] - rank[i])
                total = total + torch.log(1 + torch.exp(-ahead)) + center_rewards_coefficient * (leaf[i] + leaf[j]) ** 2
                count += 1
        total.backward()
        results.append((total.item(), int(count), leaf.grad.double()))
    (total, count, gradient), (expected, pairs, wanted) = results
    assert count == pairs and total == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert torch.allclose(gradient, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_rewards_far_apart_give_finite_losses_and_gradients(size):
    rewards = torch.tensor([size, -size], requires_grad=True)
    total, _ = pairwise_ranking(rewards, torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1]))
    total.backward()
    assert total.item() == (0.0 if size > 0 else 2e4) and rewards.grad.isfinite().all()


def test_a_batch_without_a_pair_counts_nothing_and_has_no_gradient():
    rewards = torch.tensor([1.0, 2.0], requires_grad=True)
    better, worse = ranked_pairs(torch.tensor([0, 1]), torch.tensor([0, 1]))
    total, count = pairwise_ranking(rewards, torch.tensor([0, 1]), better, worse)
    total.backward()
    assert (total.item(), count.item()) == (0, 0) and rewards.grad.abs().sum() == 0


def summed(batches) -> dict[str, float]:
    """Figures of several batches as the trainer makes them: sums and counts added up, then divided."""
    reports = [report(*batch, num_ranks=5) for batch in batches]
    assert len({tuple(one) for one in reports}) == 1, "every batch has the same names"
    totals = {name: sum(one[name].double() for one in reports) for name in reports[0]}
    return derive({name: (total[0] / total[1]).item() for name, total in totals.items()})


def naive_figures(rewards, rank, group, length) -> dict[str, float]:
    """All figures group by group and pair by pair, of lists."""
    figures, pairs = {}, sorted(naive_pairs(rank, group, "adjacent"))

    def mean(name, values):
        if values:
            figures[name] = sum(values) / len(values)

    for level in range(4):
        here = [rewards[i] > rewards[j] for i, j in pairs if (rank[i], rank[j]) == (level, level + 1)]
        mean(f"accuracy {level}>{level + 1}", here)
    mean("best over worst", [rewards[i] > rewards[j] for i, j in naive_pairs(rank, group, "extremes")])
    taus, exact, top = [], [], []
    for number in sorted(set(group)):
        members = [place for place, owner in enumerate(group) if owner == number]
        compared = [(i, j) for i in members for j in members if rank[i] < rank[j]]
        if compared:
            right = [rewards[i] > rewards[j] for i, j in compared]
            exact.append(all(right))
            taus.append((2 * sum(right) - len(right)) / len(right))
            top.append(rank[max(members, key=lambda place: rewards[place])] == min(rank[place] for place in members))
    for name, values in (("exact order", exact), ("Kendall's tau", taus), ("top-1", top)):
        mean(name, values)
    for level in range(5):
        here = [reward for reward, one in zip(rewards, rank, strict=True) if one == level]
        mean(f"reward of rank {level}", here)
        if here:
            middle = sum(here) / len(here)
            figures[f"spread of rank {level}"] = math.sqrt(sum((one - middle) ** 2 for one in here) / len(here))
    figures["reward-length correlation"] = pearsonr(rewards, length).statistic
    bins = [[] for _ in range(BINS)]
    for i, j in pairs:
        probability = 1 / (1 + math.exp(-abs(rewards[i] - rewards[j])))
        bins[min(int((probability - 0.5) * 2 * BINS), BINS - 1)].append((rewards[i] > rewards[j]) - probability)
    figures["calibration error"] = sum(abs(sum(one)) for one in bins) / len(pairs)
    return figures


def test_the_figures_of_several_batches_are_those_of_a_loop_over_all():
    draw = random.Random(3)
    groups = [[draw.randrange(5) for _ in range(draw.randint(1, 5))] for _ in range(200)]
    rewards, rank, group = flat(groups)
    length = torch.tensor([draw.randint(1, 50) for _ in rank])
    batches = []
    for part in range(7):
        here = group % 7 == part
        batches.append((rewards[here], rank[here], group[here], length[here]))
    expected = naive_figures(*(values.tolist() for values in (rewards, rank, group, length)))
    assert summed(batches) == pytest.approx(expected, abs=1e-5)
    assert len(expected) == 4 + 1 + 3 + 10 + 2


def test_kendalls_tau_is_scipys_where_no_answers_tie():
    draw = random.Random(4)
    rewards, rank, group = flat([draw.sample(range(5), 4) for _ in range(30)])
    taus = [kendalltau(rewards[group == n], -rank[group == n]).statistic for n in range(30)]
    found = summed([(rewards, rank, group, torch.arange(len(rank)))])
    assert found["Kendall's tau"] == pytest.approx(sum(taus) / 30, abs=1e-6)


def test_equal_rewards_are_never_right():
    rank, group = torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64)
    found = summed([(torch.ones(3), rank, group, torch.arange(3))])
    assert found["best over worst"] == found["exact order"] == found["top-1"] == found["Kendall's tau"] == 0
