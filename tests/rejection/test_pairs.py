"""Pairs of a round of iterative DPO: the best and the worst of each prompt, and as many drawn at random."""

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st
from support.candidates import CANDIDATES

from megatron_chimed.rejection.select import best_and_worst, random_pairs


def by_prompt(candidates) -> dict:
    found = defaultdict(list)
    for one in candidates:
        if one.reward is not None:
            found[one.round, one.prompt].append(one)
    return found


@given(CANDIDATES)
def test_each_prompt_whose_rewards_differ_gives_its_best_and_its_worst(candidates):
    groups = by_prompt(candidates)
    pairs = best_and_worst([one for group in groups.values() for one in group])
    seen = {(best.round, best.prompt): (best, worst) for best, worst in pairs}
    assert len(seen) == len(pairs) and [best.key for best, _ in pairs] == sorted(best.key for best, _ in pairs)
    for name, group in groups.items():
        rewards = [one.reward for one in group]
        if min(rewards) == max(rewards):
            assert name not in seen, "answers of one reward say nothing"
        else:
            best, worst = seen[name]
            assert best in group and worst in group and (best.reward, worst.reward) == (max(rewards), min(rewards))


@given(CANDIDATES, st.integers(0, 99))
def test_the_control_has_the_same_prompts_and_does_not_depend_on_the_order(candidates, seed):
    pool = [one for group in by_prompt(candidates).values() for one in group]
    pairs = best_and_worst(pool)
    control = random_pairs(pool, pairs, seed)
    assert [one.prompt for one, _ in control] == [one.prompt for one, _ in pairs]
    assert all(one != other and (one.round, one.prompt) == (other.round, other.prompt) for one, other in control)
    assert random_pairs(pool[::-1], pairs, seed) == control


def test_the_control_looks_at_no_reward():
    """Over many seeds the better answer stands first as often as not."""
    from support.candidates import make_candidate

    pool = [make_candidate(prompt=str(place), sample=sample, reward=float(sample)) for place in range(40)
            for sample in range(3)]  # fmt: skip
    pairs = best_and_worst(pool)
    counts = Counter(one.reward > other.reward for seed in range(25) for one, other in random_pairs(pool, pairs, seed))
    assert 400 < counts[True] < 600 and sum(counts.values()) == 1000
