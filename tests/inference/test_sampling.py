"""From logits to tokens: each draw against a slow twin in plain Python, and frequencies against probabilities."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.reference import chi_square_z

from megatron_chimed.inference.sampling import draw, least_probability, uniforms


def draw_slowly(logits: list[float], uniform: float, temperature: float, top_k: int, top_p: float) -> tuple[int, set]:
    """(the token, the ids that may be drawn) of one row."""
    if temperature == 0:
        return logits.index(max(logits)), {logits.index(max(logits))}
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    order = sorted(range(len(weights)), key=lambda id: -weights[id])[: top_k or None]
    total, kept, held = sum(weights[id] for id in order), [], 0.0
    for id in order:
        if not kept or top_p == 1 or held < top_p * total * (1 - 1e-12):
            kept.append(id)
            held += weights[id]
    kept = {id for id in range(len(weights)) if weights[id] >= weights[kept[-1]]}  # equals of the last are kept
    sought, held = uniform * sum(weights[id] for id in kept), 0.0
    for id in sorted(kept):
        held += weights[id]
        if held > sought:
            return id, kept
    return max(kept), kept


ROW = st.tuples(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 2, 5, 40]),
    st.sampled_from([0.01, 0.5, 0.9, 1.0]),
)


@given(st.integers(0, 1000), st.sampled_from([1, 7, 60, 300]), st.lists(ROW, min_size=1, max_size=6), st.booleans())
def test_a_draw_is_that_of_the_slow_twin_whatever_other_rows_ask_for(seed, ids, rows, ties):
    logits = 3 * torch.randn(len(rows), ids, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if ties else logits
    seeds, temperature, top_k, top_p = zip(*rows, strict=True)
    uniform = torch.stack([uniforms(one, 3)[2] for one in seeds])
    settings_ = torch.tensor(temperature).double(), torch.tensor(top_k), torch.tensor(top_p).double()
    found = draw(logits, uniform, *settings_).tolist()
    for row, token in enumerate(found):
        expected, kept = draw_slowly(logits[row].double().tolist(), uniform[row].item(), *rows[row][1:])
        assert token == expected and token in kept
        alone = draw(logits[row : row + 1], uniform[row : row + 1], *(each[row : row + 1] for each in settings_))
        assert alone.item() == token


def test_the_token_that_reaches_top_p_is_kept_and_the_next_is_not():
    probability = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).double()
    for top_p, least in ((0.3, 0.4), (0.41, 0.3), (0.69, 0.3), (0.75, 0.2), (0.95, 0.1)):
        found = least_probability(probability, torch.tensor([0]), torch.tensor([top_p]).double())
        assert found.item() == pytest.approx(least)
    # Of the two most likely ones, which are then all: 4/7 and 3/7.
    found = least_probability(probability, torch.tensor([2]), torch.tensor([0.5]).double())
    assert found.item() == pytest.approx(0.4)


def test_looking_at_few_ids_gives_what_sorting_all_gives():
    draws = torch.Generator().manual_seed(0)
    probability = (torch.randn(30, 500, generator=draws) / torch.linspace(0.1, 3, 30)[:, None]).double().softmax(-1)
    top_k, top_p = torch.tensor([0, 3, 200] * 10), torch.tensor([0.9, 1.0, 0.99, 0.5, 0.2] * 6).double()
    every = least_probability(probability, top_k, top_p, 500)
    for look_at in (1, 7, 64):
        assert torch.equal(least_probability(probability, top_k, top_p, look_at), every)


def test_uniform_numbers_are_a_function_of_seed_and_step():
    assert torch.equal(uniforms(7, 50)[:5], uniforms(7, 5))
    assert not torch.equal(uniforms(7, 5), uniforms(7 + 2**32, 5))  # a torch.Generator would take them for one seed
    many = torch.cat([uniforms(seed, 100) for seed in range(1000)])
    assert many.min() >= 0 and many.max() < 1
    assert abs(many.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / len(many))
    first = torch.stack([uniforms(seed, 2) for seed in range(20000)])
    cells = (first * 10).long()
    counts = torch.bincount(cells[:, 0] * 10 + cells[:, 1], minlength=100)
    assert abs(chi_square_z(counts.tolist(), [200.0] * 100)) < 4


def test_frequencies_fit_the_softmax_and_not_another_one():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    number, rows = 20000, torch.ones(20000)
    uniform = torch.cat([uniforms(seed, 1) for seed in range(number)])
    found = draw(logits.expand(number, -1), uniform, 0.7 * rows.double(), 0 * rows.long(), rows.double())
    counts = torch.bincount(found, minlength=50).tolist()
    assert abs(chi_square_z(counts, (number * (logits.double() / 0.7).softmax(-1)).tolist())) < 4
    assert chi_square_z(counts, (number * (logits.double() / 0.8).softmax(-1)).tolist()) > 8


def test_a_draw_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(torch.randn(4, 9, generator=torch.Generator()), uniforms(1, 4), *(torch.full((4,), x) for x in (1.0, 3, 0.5)))
    assert torch.equal(torch.get_rng_state(), before)
