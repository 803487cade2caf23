"""Selection: strategies equal their slow obvious twins, nothing depends on order, the control matches the strategy."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.candidates import CANDIDATES, QUESTIONS, make_candidate

from megatron_chimed.rejection import select as selection
from megatron_chimed.rejection.select import (
    Filters,
    Rule,
    filter_candidates,
    random_control,
    repetition,
    select,
    shingles,
    similarity,
)
from megatron_chimed.text.normalise import normalise

RULES = st.builds(
    Rule,
    strategy=st.sampled_from(selection.STRATEGIES),
    k=st.integers(0, 30),
    threshold=st.sampled_from([-9.0, 0.0, 0.5, 9.0]),
)
FILTERS = st.builds(
    Filters,
    keep_cut_off=st.booleans(),
    max_repetition=st.sampled_from([0.0, 0.5, 1.0]),
    near_duplicate=st.sampled_from([0.5, 0.9, 2.0]),
)


def scored(candidates):
    return [one for one in candidates if one.reward is not None]


def better(one, other) -> bool:
    """Whether `one` comes before `other`: by reward, equal rewards by key."""
    return one.reward > other.reward or (one.reward == other.reward and one.key < other.key)


@given(CANDIDATES, RULES)
def test_a_strategy_takes_what_its_definition_says(candidates, rule):
    pool = scored(candidates)
    expected = []
    for one in pool:
        if rule.strategy == "best_of_n":
            taken = not any(better(other, one) for other in pool if other.prompt == one.prompt)
        elif rule.strategy == "top_k":
            taken = sum(better(other, one) for other in pool) < rule.k
        else:
            taken = one.reward >= rule.threshold
        expected += [one] if taken else []
    assert select(pool, rule) == sorted(expected, key=lambda one: one.key)


@given(CANDIDATES, RULES, FILTERS, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_changes_nothing(candidates, rule, filters, draw):
    shuffled = draw.sample(candidates, len(candidates))
    one, other = (filter_candidates(each, QUESTIONS, filters) for each in (candidates, shuffled))
    assert one == other
    mixed = draw.sample(one[0], len(one[0]))
    assert select(one[0], rule) == select(mixed, rule)
    assert random_control(one[0], rule, 3) == random_control(mixed, rule, 3)


@given(CANDIDATES, FILTERS)
def test_filters_account_for_every_candidate_and_never_look_at_the_reward(candidates, filters):
    pool, dropped = filter_candidates(candidates, QUESTIONS, filters)
    assert len(pool) + sum(dropped.values()) == len(candidates)
    assert set(pool) <= set(candidates)
    others = [one if one.reward is None else replace(one, reward=-one.reward - 1) for one in candidates]
    turned, same = filter_candidates(others, QUESTIONS, filters)
    assert [one.key for one in turned] == [one.key for one in pool] and same == dropped


@given(CANDIDATES, FILTERS)
def test_no_two_answers_of_a_prompt_that_are_left_are_near_duplicates(candidates, filters):
    pool, dropped = filter_candidates(candidates, QUESTIONS, filters)
    everything, _ = filter_candidates(candidates, QUESTIONS, replace(filters, near_duplicate=2.0))
    for one in everything:
        earlier = [other for other in pool if other.prompt == one.prompt and other.sample < one.sample]
        close = [other for other in earlier if alike(one.response, other.response) >= filters.near_duplicate]
        assert (one in pool) == (not close)
    assert len(everything) - len(pool) == dropped[selection.NEAR_DUPLICATE]


def alike(one: str, other: str) -> float:
    """Jaccard similarity of the sets of 3 characters in a row, the slow way."""
    sets = []
    for text in map(normalise, (one, other)):
        grams = [text[start : start + 3] for start in range(max(1, len(text) - 2))]
        sets.append({gram for gram in grams if gram})
    both = [gram for gram in sets[0] if gram in sets[1]]
    return len(both) / (len(sets[0]) + len(sets[1]) - len(both)) if sets[0] or sets[1] else 1.0


@given(st.text(alphabet="多喝水。a ", max_size=12), st.text(alphabet="多喝水。a ", max_size=12))
def test_similarity_equals_its_slow_twin(one, other):
    assert similarity(shingles(one), shingles(other)) == pytest.approx(alike(one, other))


@given(st.text(alphabet="多喝水。", max_size=20))
def test_repetition_is_the_share_of_grams_seen_before(text):
    grams = [text[start : start + 4] for start in range(len(text) - 3)]
    again = sum(gram in grams[:place] for place, gram in enumerate(grams))
    assert repetition(text) == pytest.approx(again / len(grams) if grams else 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reward": None}, selection.NOT_SCORED),
        ({"response": " \n"}, selection.EMPTY),
        ({"finished": False}, selection.CUT_OFF),
        ({"response": "问 题0"}, selection.ECHO),
        ({"response": "多喝水。" * 9}, selection.REPETITIVE),
    ],
)
def test_each_fault_is_dropped_under_its_own_name(change, reason):
    good = make_candidate(sample=1)
    pool, dropped = filter_candidates([good, replace(good, sample=0, **change)], QUESTIONS, Filters())
    assert pool == [good] and dropped == Counter({reason: 1})


def test_a_near_duplicate_is_dropped_within_its_prompt_only():
    text = "建议去呼吸内科就诊，并做胸部检查。另外注意休息，清淡饮食"
    same = [
        make_candidate("p0", 0, 1.0, text),
        make_candidate("p0", 1, 9.0, text + "。"),
        make_candidate("p1", 0, 1.0, text),
    ]
    pool, dropped = filter_candidates(same, QUESTIONS, Filters())
    assert pool == [same[0], same[2]] and dropped == Counter({selection.NEAR_DUPLICATE: 1})


@given(CANDIDATES, RULES, st.integers(0, 5))
def test_the_control_has_size_and_structure_of_the_strategy(candidates, rule, seed):
    pool = scored(candidates)
    chosen, control = select(pool, rule), random_control(pool, rule, seed)
    assert len(control) == len(chosen) and set(control) <= set(pool) and len(set(control)) == len(control)
    if rule.strategy == "best_of_n":
        assert [one.prompt for one in control] == [one.prompt for one in chosen]
    flipped = [replace(one, reward=-one.reward) for one in pool]
    if rule.strategy != "threshold":
        assert [one.key for one in random_control(flipped, rule, seed)] == [one.key for one in control]


def test_the_control_takes_every_answer_equally_often():
    pool = [make_candidate(f"p{prompt}", sample, float(sample)) for prompt in range(300) for sample in range(4)]
    taken = Counter(one.sample for one in random_control(pool, Rule("best_of_n"), 0))
    assert all(abs(taken[sample] - 75) < 40 for sample in range(4)), taken  # five standard deviations
    assert random_control(pool, Rule("best_of_n"), 0) != random_control(pool, Rule("best_of_n"), 1)
    mean = sum(one.reward for one in random_control(pool, Rule("top_k", 300), 0)) / 300
    assert abs(mean - 1.5) < 0.33


def test_equal_rewards_are_taken_by_key():
    pool = [make_candidate(prompt, sample) for prompt in ("p1", "p0") for sample in (2, 0, 1)]
    random.Random(0).shuffle(pool)
    assert [one.key for one in select(pool, Rule("top_k", k=2))] == [(1, "p0", 0), (1, "p0", 1)]
    assert [one.sample for one in select(pool, Rule("best_of_n"))] == [0, 0]


def test_a_candidate_without_reward_is_never_ranked():
    with pytest.raises(ValueError, match="no reward"):
        select([make_candidate(reward=None)], Rule())
