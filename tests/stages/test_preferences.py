"""Losses of preference optimization against slow twins: TRL's formula, permutations one by one, a double loop."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from megatron_chimed.stages import dpo
from megatron_chimed.stages.losses import ranked_pairs
from megatron_chimed.stages.options import DpoConfig
from megatron_chimed.stages.preferences import pair_losses, plackett_luce, questions_of

RANKS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=4)


def drawn(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_pair_s_loss_and_gradient_are_those_of_trls_formula(smoothing):
    """TRL's loss types `sigmoid` and, with label_smoothing, cDPO, over chosen and rejected log-ratios."""
    change, beta = drawn(8).requires_grad_(), 0.3
    better, worse = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 7])
    ours = pair_losses(beta * change, better, worse, smoothing)
    (gradient,) = torch.autograd.grad(ours.sum(), change)
    logits = change[better] - change[worse]
    theirs = -logsigmoid(beta * logits) * (1 - smoothing) - logsigmoid(-beta * logits) * smoothing
    (expected,) = torch.autograd.grad(theirs.sum(), change)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def by_permutations(rewards: list[float], ranks: list[int]) -> float:
    """-log of the summed probabilities of all orders of drawing that put no answer before one of a better rank."""
    total = 0.0
    for order in itertools.permutations(range(len(ranks))):
        if any(ranks[a] > ranks[b] for a, b in itertools.pairwise(order)):
            continue
        probability, left = 1.0, list(order)
        while left:
            probability *= math.exp(rewards[left[0]]) / sum(math.exp(rewards[one]) for one in left)
            left.pop(0)
        total += probability
    return -math.log(total)


@given(RANKS)
def test_plackett_luce_is_what_permutations_one_by_one_give(ranks):
    flat = [rank for question in ranks for rank in question]
    group = torch.tensor([number for number, question in enumerate(ranks) for _ in question])
    rewards, rank = 2 * drawn(len(flat)), torch.tensor(flat)
    found = [plackett_luce(rewards, levels).item() for levels in questions_of(rank, group)]
    expected, start = [], 0
    for question in ranks:
        here = rewards[start : start + len(question)].tolist()
        expected += [by_permutations(here, question)] if len(set(question)) > 1 else []
        start += len(question)
    assert found == pytest.approx(expected, abs=1e-9)


def test_plackett_luce_of_two_answers_is_the_loss_of_a_pair():
    rewards, rank, group = drawn(2), torch.tensor([1, 0]), torch.zeros(2, dtype=torch.int64)
    (levels,) = questions_of(rank, group)
    pair = pair_losses(rewards, *ranked_pairs(rank, group), 0.0)
    torch.testing.assert_close(plackett_luce(rewards, levels)[None], pair)


def test_plackett_luce_of_large_rewards_is_finite():
    rewards = torch.tensor([900.0, -900.0, 0.0, -900.0], dtype=torch.float64, requires_grad=True)
    (levels,) = questions_of(torch.tensor([2, 0, 1, 2]), torch.zeros(4, dtype=torch.int64))
    loss = plackett_luce(rewards, levels)
    loss.backward()
    assert loss.item() == pytest.approx(2700)  # 1,800 for the first, 900 for the second
    assert rewards.grad.isfinite().all()


def row_of_answers(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, list]:
    """(a batch [1, S] of three questions behind each other, nll [1, S], [(log p, reference, length, rank, group)])."""
    draw = random.Random(seed)
    columns = {name: [] for name in ("rank", "group", "length", "loss_mask", "reference")}
    nll, answers = [], []
    for group in range(3):
        for rank in draw.choices(range(3), k=3) if group else [0, 1, 2]:
            prompt, length = draw.randint(1, 3), draw.randint(1, 4)
            values = [draw.uniform(0, 4) for _ in range(prompt + length)]
            nll += values
            mask = [0] * (prompt - 1) + [1] * length + [0]
            log_p = -sum(value for value, learnt in zip(values, mask, strict=True) if learnt)
            reference = log_p + draw.gauss(0, 2)
            answers.append((log_p, reference, length, rank, group))
            columns["loss_mask"] += mask
            for name, value in (("rank", rank), ("group", group), ("length", length)):
                columns[name] += [-1] * (prompt + length - 1) + [value]
            columns["reference"] += [0.0] * (prompt + length - 1) + [reference]
    types = {"loss_mask": torch.float32, "reference": torch.float64}
    batch = {name: torch.tensor([values], dtype=types.get(name, torch.int64)) for name, values in columns.items()}
    return batch, torch.tensor([nll], dtype=torch.float64), answers


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pairing", ["adjacent", "all", "extremes"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.5, "label_smoothing": 0.1},
        {"length_normalized": True, "sft_coefficient": 0.7},
        {"loss": "plackett_luce", "sft_coefficient": 0.3},
    ],
)
def test_sum_and_count_are_those_of_a_double_loop(seed, pairing, settings):
    config = DpoConfig(**settings)
    batch, nll, answers = row_of_answers(seed)
    total, count, figures = dpo.loss(config, batch, pairing, None, nll)
    rewards = [config.beta * (p - ref) / (n if config.length_normalized else 1) for p, ref, n, _, _ in answers]
    rank, group = (torch.tensor([answer[place] for answer in answers]) for place in (3, 4))
    expected, parts = 0.0, 0
    if config.loss == "pairs":
        for i, j in zip(*ranked_pairs(rank, group, pairing), strict=True):
            difference = rewards[i] - rewards[j]
            loss = math.log1p(math.exp(-difference)) * (1 - config.label_smoothing)
            loss += math.log1p(math.exp(difference)) * config.label_smoothing
            expected += loss + config.sft_coefficient * -answers[i][0] / answers[i][2]
            parts += 1
    else:
        for number in range(3):
            here = [place for place, answer in enumerate(answers) if answer[4] == number]
            ranks = [answers[place][3] for place in here]
            if len(set(ranks)) > 1:
                best = [answers[place] for place in here if answers[place][3] == min(ranks)]
                expected += by_permutations([rewards[place] for place in here], ranks)
                expected += config.sft_coefficient * sum(-p / n for p, _, n, _, _ in best) / len(best)
                parts += 1
    assert total.item() == pytest.approx(expected, abs=1e-6) and count.item() == parts
    assert dpo.count(config, batch, pairing) == parts
    moved = [figures["KL estimate"][0] / figures["KL estimate"][1], figures["reward margin"][0]]
    assert moved[0].item() == pytest.approx(
        sum(ref - p for p, ref, *_ in answers) / sum(n for _, _, n, *_ in answers), abs=1e-5
    )
    pairs = list(zip(*ranked_pairs(rank, group, pairing), strict=True))
    assert moved[1].item() == pytest.approx(sum(rewards[i] - rewards[j] for i, j in pairs), abs=1e-5)


def test_a_row_in_which_nothing_is_compared_counts_for_nothing():
    batch, nll, _ = row_of_answers(0)
    blank = {name: torch.full_like(batch[name], -1) for name in ("rank", "group", "length")}
    for config in (DpoConfig(), DpoConfig(loss="plackett_luce")):
        nll.requires_grad_().grad = None
        total, count, _ = dpo.loss(config, batch | blank | {"loss_mask": batch["loss_mask"] * 0}, "adjacent", 4, nll)
        total.backward()
        assert total == 0 and count == 0 and not nll.grad.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0; expected more than 0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"label_smoothing": 0.1, "loss": "plackett_luce"}, "label_smoothing is of the loss `pairs`"),
        ({"sft_coefficient": -1.0}, "sft_coefficient is -1.0"),
    ],
)
def test_values_that_make_no_sense_are_named(settings, message):
    assert message in "; ".join(DpoConfig(**settings).problems())
