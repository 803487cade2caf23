"""Training examples: both modes learn the same, what does not fit goes oldest first, every token is accounted for."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dialogues import KINDS, make_dialogue, make_dialogues, make_renderer

from megatron_chimed.packing.examples import NO_ANSWER, NO_QUESTION, TOO_LONG, Example, fit_example, make_examples
from megatron_chimed.text.exchange import Exchange

PLENTY = 10**6


@pytest.fixture(scope="module")
def renderers(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: make_renderer(kind, folder) for kind in KINDS}


def examples_of(dialogue, renderer, mode):
    return list(make_examples(renderer.encode_exchanges([dialogue.turns])[0], mode))


def learnt(rendered) -> list[tuple]:
    """(tokens before it, target) of each token to be learnt."""
    tokens = rendered.tokens.tolist()
    return [(tuple(tokens[:place]), tokens[place]) for place in np.flatnonzero(rendered.loss_mask)]


@pytest.mark.parametrize("kind", KINDS)
def test_both_modes_learn_the_same_targets_behind_the_same_tokens(renderers, kind):
    turns = Counter()
    for dialogue in make_dialogues(30):
        seen = {}
        for mode in ("whole", "per-turn"):
            fitted = [
                fit_example(one, PLENTY, renderers[kind], Counter())
                for one in examples_of(dialogue, renderers[kind], mode)
            ]
            seen[mode] = Counter(pair for rendered in fitted for pair in learnt(rendered))
            turns[mode, len(fitted)] += 1
        assert seen["whole"] == seen["per-turn"]
        assert max(seen["whole"].values()) == 1
    assert turns["whole", 1] == 30 and turns["per-turn", 1] < 10, "hardly a dialogue had several turns"


def test_last_learns_the_last_answer_alone_behind_all_that_came_before_it(renderers):
    renderer = renderers["sentencepiece"]
    for dialogue in make_dialogues(30):
        (last,) = examples_of(dialogue, renderer, "last")
        expected = examples_of(dialogue, renderer, "per-turn")[-1]
        rendered = [fit_example(one, PLENTY, renderer, Counter()) for one in (last, expected)]
        assert learnt(rendered[0]) == learnt(rendered[1])


def test_per_turn_has_an_example_for_each_answer_with_all_that_came_before_it(renderers):
    renderer = renderers["sentencepiece"]
    dialogue = make_dialogue("头痛", "服用", "发热", "检查", "血压", "三次")
    rendered = [fit_example(one, PLENTY, renderer, Counter()) for one in examples_of(dialogue, renderer, "per-turn")]
    assert [len(one.tokens) for one in rendered] == sorted({len(one.tokens) for one in rendered})
    answers = [renderer.tokenizer.decode(one.tokens[one.loss_mask == 1]) for one in rendered]
    assert answers == ["服用", "检查", "三次"]


# Made of ids alone: BOS 1, then a prompt; a response, then EOS 2. The bare renderer keeps BOS and one id at each end.
BOS, EOS, PREFIX, SUFFIX = 1, 2, 3, 4


class BareRenderer:
    """Cuts prompts as the real one does, for a template of one token at each end."""

    def cut_prompt(self, prompt, limit, system):
        return np.concatenate([prompt[:2], prompt[len(prompt) - (limit - 2) :]]) if limit >= 3 else None


def exchange(question: int, answer: int, first: int) -> Exchange:
    """Ids from `first` on: so many of a question, and of an answer."""
    ids = np.arange(first, first + question + answer, dtype=np.int32)
    prompt = np.array([BOS, PREFIX, *ids[:question], SUFFIX], np.int32)
    return Exchange(prompt, np.array([*ids[question:], EOS], np.int32))


EXCHANGES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5).map(
    lambda sizes: [exchange(*size, 100 * (number + 1)) for number, size in enumerate(sizes)]
)


@given(EXCHANGES, st.integers(4, 60), st.sampled_from(["whole", "per-turn"]))
def test_what_is_kept_is_the_end_of_the_example_with_its_answers_whole(exchanges, limit, mode):
    for example in make_examples(exchanges, mode):
        counts = Counter()
        rendered = fit_example(example, limit, BareRenderer(), counts)
        answer = example.exchanges[-1].response.tolist()
        if rendered is None:
            assert len(answer) + 3 > limit or any(len(one.response) == 1 for one in example.exchanges)
            continue
        tokens = rendered.tokens.tolist()
        assert len(tokens) <= limit and tokens[-len(answer) :] == answer and tokens[:2] == [BOS, PREFIX]
        everything = [id for one in example.exchanges for ids in one for id in ids.tolist()]
        lost = counts["shortened", "tokens"] + counts["cut", "tokens"]
        assert tokens[2:] == everything[lost + 2 :], "what is lost are the oldest tokens"
        if counts["cut", "tokens"]:
            assert len(tokens) == limit, "not more is cut than has to be"
        elif counts["shortened", "tokens"]:
            left_out = len(example.exchanges) - tokens.count(BOS)
            assert len(tokens) + sum(map(len, example.exchanges[left_out - 1])) > limit, "not more is left out"


@given(st.lists(EXCHANGES, min_size=1, max_size=6), st.integers(4, 60), st.sampled_from(["whole", "per-turn"]))
def test_every_token_that_comes_in_is_kept_or_counted_as_lost(dialogues, limit, mode):
    counts, kept = Counter(), []
    examples = [one for exchanges in dialogues for one in make_examples(exchanges, mode)]
    for example in examples:
        rendered = fit_example(example, limit, BareRenderer(), counts)
        kept += [] if rendered is None else [rendered]
    assert counts["in", "tokens"] == sum(len(ids) for one in examples for pair in one.exchanges for ids in pair)
    assert counts["kept", "tokens"] == sum(len(one.tokens) for one in kept)
    assert counts["kept", "trained"] == sum(int(one.loss_mask.sum()) for one in kept)
    for unit in ("tokens", "trained"):
        assert counts["in", unit] == sum(counts[what, unit] for what in ("shortened", "cut", "dropped", "kept"))
    assert len(examples) == len(kept) + counts["dropped", "instances"]
    assert counts["dropped", "instances"] == sum(n for (kind, _), n in counts.items() if kind == "reason")


def outcome(exchanges, limit, mode="whole") -> Counter:
    """The counts of the last example; zero ones left out."""
    counts = Counter()
    fit_example(list(make_examples(exchanges, mode))[-1], limit, BareRenderer(), counts)
    return +counts


def test_each_way_to_lose_tokens_is_counted_as_what_it_is():
    two = [exchange(4, 4, 100), exchange(3, 3, 200)]  # 12 and 10 tokens, of which 5 and 4 are learnt
    assert outcome(two, 22)["kept", "trained"] == 9
    assert outcome(two, 21)["shortened", "tokens"] == 12 and outcome(two, 21)["shortened", "trained"] == 5
    assert outcome(two, 21, "per-turn")["shortened", "tokens"] == 12
    assert outcome(two, 21, "per-turn")["shortened", "trained"] == 0, "there the first answer is an example of its own"
    assert outcome(two, 9)["cut", "tokens"] == 1 and outcome(two, 9)["shortened", "tokens"] == 12
    assert outcome(two, 7)["cut", "tokens"] == 3 and outcome(two, 7)["kept", "tokens"] == 7
    assert outcome(two, 6)["reason", TOO_LONG] == 1 and outcome(two, 6)["dropped", "tokens"] == 22
    assert outcome([exchange(2, 0, 100)], 60)["reason", NO_ANSWER] == 1
    bare = Exchange(np.zeros(0, np.int32), np.array([5, EOS], np.int32))
    assert outcome([bare], 60)["reason", NO_QUESTION] == 1


def test_an_example_counts_its_tokens():
    example = Example([exchange(4, 4, 100), exchange(3, 3, 200)], 1)
    assert (example.num_tokens, example.num_target_tokens) == (22, 4)
