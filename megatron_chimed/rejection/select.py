"""Which sampled answers become training data: filters, strategies by reward, and the random control. Pure functions.

The paper ranks all texts by reward and takes the top k as gold (arXiv 2311.06025, section on rejection sampling); that
is `top_k`. `best_of_n` takes the best answer of each prompt, which keeps every prompt, and `threshold` whatever reaches
a reward.

No filter looks at the reward. So the pool that a strategy selects from is the one that the random control draws from,
with the same structure and size, and what differs between models trained on the two is the effect of the reward.

Candidates are known by their keys, never by their places: results do not depend on the order of the input, and come
sorted by key. Equal rewards are in the order of their keys.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_chimed.records import Candidate
from megatron_chimed.rejection.keys import keyed_draw
from megatron_chimed.text.normalise import normalise

STRATEGIES = ("best_of_n", "top_k", "threshold")
REPEATED = 4  # characters; Chinese words have two or three, so that a repeated gram is a repeated phrase
SHINGLE = 3  # characters of the grams by which two answers are compared

NOT_SCORED = "not scored"
EMPTY = "empty"
CUT_OFF = "cut off"
ECHO = "equal to the prompt"
REPETITIVE = "repetitive"
NEAR_DUPLICATE = "near duplicate"


@dataclass(frozen=True)
class Filters:
    """Which answers are no candidates for training. Empty answers and those that equal the question never are."""

    keep_cut_off: bool = False
    """Keep answers that the limit on tokens ended, and not EOS."""

    max_repetition: float = 0.5
    """Largest `repetition` of an answer; 1 lets everything pass."""

    near_duplicate: float = 0.9
    """`similarity` from which an answer counts as one of the same prompt with a lower sample number; above 1: never."""


@dataclass(frozen=True)
class Rule:
    """How answers are selected."""

    strategy: Literal["best_of_n", "top_k", "threshold"] = "best_of_n"
    """The best answer of each prompt; the k best of all; all from a reward on."""

    k: int = 10000
    """For top_k: how many."""

    threshold: float = 0.0
    """For threshold: the least reward."""


def filter_candidates(
    candidates: Iterable[Candidate], questions: Mapping[str, str], filters: Filters
) -> tuple[list[Candidate], Counter]:
    """(The pool, sorted by key; how many were dropped for each reason). Their sum is the number of candidates.

    questions: the last user's turn of each prompt, by the prompt's id. Raises KeyError for a prompt without one.
    """
    pool, dropped = [], Counter()
    kept: dict[str, list[frozenset[str]]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda one: one.key):
        reason = _fault(candidate, questions[candidate.prompt], filters)
        if reason is None and filters.near_duplicate <= 1:
            grams = shingles(candidate.response)
            if any(similarity(grams, other) >= filters.near_duplicate for other in kept[candidate.prompt]):
                reason = NEAR_DUPLICATE
            else:
                kept[candidate.prompt].append(grams)
        if reason is None:
            pool.append(candidate)
        else:
            dropped[reason] += 1
    return pool, dropped


def _fault(candidate: Candidate, question: str, filters: Filters) -> str | None:
    """Why an answer is dropped, whatever the others are; None if it is not."""
    if candidate.reward is None:
        return NOT_SCORED
    text = normalise(candidate.response)
    if not text:
        return EMPTY
    if not candidate.finished and not filters.keep_cut_off:
        return CUT_OFF
    if text == normalise(question):
        return ECHO
    if repetition(candidate.response) > filters.max_repetition:
        return REPETITIVE
    return None


def repetition(text: str) -> float:
    """Share of a text's character 4-grams that stand earlier in it: 0 for one that repeats nothing, near 1 for a loop.

    >>> repetition("多喝水。" * 10) > 0.85, repetition("玄兰肺病的症状是干咳少痰。"), repetition("好")
    (True, 0.0, 0.0)
    """
    text = normalise(text)
    grams = [text[start : start + REPEATED] for start in range(len(text) - REPEATED + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def shingles(text: str) -> frozenset[str]:
    """The set of a text's character 3-grams; a shorter text is one gram, one without characters has none."""
    text = normalise(text)
    if len(text) < SHINGLE:
        return frozenset({text} - {""})
    return frozenset(text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity of two sets, from 0 to 1; two empty sets are equal."""
    return len(one & other) / len(one | other) if one or other else 1.0


def select(pool: Iterable[Candidate], rule: Rule) -> list[Candidate]:
    """The candidates that a rule takes, sorted by key.

    best_of_n: one of each prompt of the pool; top_k: k of all, all if there are fewer; threshold: all from it on.
    Raises ValueError for a candidate without a reward.
    """
    ranked = sorted(pool, key=_by_reward)
    if rule.strategy == "best_of_n":
        chosen = _first_of_each_prompt(ranked)
    elif rule.strategy == "top_k":
        chosen = ranked[: rule.k]
    else:
        chosen = [one for one in ranked if one.reward >= rule.threshold]
    return sorted(chosen, key=lambda one: one.key)


def random_control(pool: Iterable[Candidate], rule: Rule, seed: int) -> list[Candidate]:
    """As many candidates as `select` takes, drawn at random, sorted by key.

    best_of_n: one answer of each prompt; top_k and threshold: any of the pool.
    """
    pool = list(pool)
    shuffled = _shuffled(pool, seed)
    chosen = _first_of_each_prompt(shuffled) if rule.strategy == "best_of_n" else shuffled[: len(select(pool, rule))]
    return sorted(chosen, key=lambda one: one.key)


Pair = tuple[Candidate, Candidate]
"""Two answers to one prompt, the better one first."""


def best_and_worst(pool: Iterable[Candidate]) -> list[Pair]:
    """The best and the worst answer to each prompt, sorted by key; none of a prompt all of whose answers have one
    reward. Raises ValueError for a candidate without a reward."""
    ranked = sorted(pool, key=_by_reward)
    worst = {(one.round, one.prompt): one for one in ranked}  # the last of each
    pairs = [(best, worst[best.round, best.prompt]) for best in _first_of_each_prompt(ranked)]
    return sorted((pair for pair in pairs if pair[0].reward > pair[1].reward), key=lambda pair: pair[0].key)


def random_pairs(pool: Iterable[Candidate], pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The control of `best_and_worst`: for each prompt of these pairs two of its answers, drawn at random, in an order
    that is drawn too; sorted by key."""
    names = {(best.round, best.prompt) for best, _ in pairs}
    drawn: dict[tuple[int, str], list[Candidate]] = defaultdict(list)
    for one in _shuffled(pool, seed):
        if (one.round, one.prompt) in names:
            drawn[one.round, one.prompt].append(one)
    return sorted(((first, second) for first, second, *_ in drawn.values()), key=lambda pair: pair[0].key)


def _shuffled(pool: Iterable[Candidate], seed: int) -> list[Candidate]:
    """The order in which a control draws, whatever the order of the pool."""
    return sorted(pool, key=lambda one: (keyed_draw(seed, "control", *one.key), one.key))


def _by_reward(candidate: Candidate) -> tuple:
    """Sorts the best first, equal rewards by key."""
    if candidate.reward is None:
        raise ValueError(f"candidate {candidate.key} has no reward")
    return -candidate.reward, candidate.key


def _first_of_each_prompt(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each (round, prompt)."""
    first: dict[tuple[int, str], Candidate] = {}
    for candidate in candidates:
        first.setdefault((candidate.round, candidate.prompt), candidate)
    return list(first.values())
