"""Training instances of dialogues, each made to fit into a sequence; what is lost on the way is counted to the token.

Two modes see the same targets, each behind the same tokens (`tests/packing/test_instances.py` shows it), a third only
a part:

- per-turn, the paper's: one instance for each answer, its history and question in front, the loss on that answer;
- whole, the efficient one: one instance for each dialogue, the loss on all its answers;
- last: one instance for each dialogue, the loss on its last answer, as in rejection sampling, where the others are the
  history that the last one was sampled for.

An instance that is too long loses its oldest exchanges first. If the last exchange alone is too long, the oldest tokens
of its question go, but never BOS and the template's own texts. Its answer is never cut: if that does not fit, the
instance is dropped. So a target of a long dialogue may see less in whole mode, or be lost with an old exchange, where
per-turn mode still trains it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megatron_chimed.text.template import Exchange, Rendered, Renderer, join

MODES = ("whole", "per-turn", "last")

TOO_LONG = "response longer than the sequence"
NO_ANSWER = "answer without tokens"
NO_QUESTION = "question without tokens"


class Instance(NamedTuple):
    """A chain of exchanges whose answers from exchange `first_trained` on are to be learnt."""

    exchanges: Sequence[Exchange]
    first_trained: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of questions and answers, BOS and EOS included."""
        return sum(len(prompt) + len(response) for prompt, response in self.exchanges)

    @property
    def num_trained(self) -> int:
        """Tokens of the answers to be learnt, their EOS included."""
        return sum(len(response) for _, response in self.exchanges[self.first_trained :])


def make_instances(exchanges: Sequence[Exchange], mode: str) -> Iterator[Instance]:
    """The instances of one dialogue; mode: one of MODES."""
    if mode == "whole":
        yield Instance(exchanges)
    elif mode == "last":
        yield Instance(exchanges, len(exchanges) - 1)
    else:
        for number in range(len(exchanges)):
            yield Instance(exchanges[: number + 1], number)


def fit(instance: Instance, limit: int, renderer: Renderer, counts: Counter) -> Rendered | None:
    """The instance in at most `limit` tokens, or None if it is dropped.

    counts, which is counted up, holds for what came in, lost its oldest exchanges ("shortened"), had its question cut
    ("cut"), was dropped ("dropped") and is left ("kept"): instances under (what, "instances"), their tokens under
    (what, "tokens"), of these the ones to be learnt under (what, "trained"). It holds for tokens and for trained:
    in = shortened + cut + dropped + kept. Reasons are counted under ("reason", reason).
    """
    _count(counts, "in", instance.num_tokens, instance.num_trained)
    reason = _useless(instance)
    left = instance
    while reason is None and left.num_tokens > limit and len(left.exchanges) > 1:
        left = Instance(left.exchanges[1:], max(left.first_trained - 1, 0))
    shortened, cut = (instance.num_tokens - left.num_tokens, instance.num_trained - left.num_trained), 0
    if reason is None and left.num_tokens > limit:
        prompt, response = left.exchanges[0]
        prompt = renderer.cut_prompt(prompt, limit - len(response))
        if prompt is None:
            reason = TOO_LONG
        else:
            cut = left.num_tokens - limit
            left = Instance([Exchange(prompt, response)])
    if reason is not None:
        _count(counts, "dropped", instance.num_tokens, instance.num_trained)
        counts["reason", reason] += 1
        return None
    if shortened[0]:
        _count(counts, "shortened", *shortened)
    if cut:
        _count(counts, "cut", cut, 0)
    _count(counts, "kept", left.num_tokens, left.num_trained)
    return join(*left)


def _useless(instance: Instance) -> str | None:
    """Why an instance is dropped whatever its length; None if it is not."""
    if any(len(response) == 1 for _, response in instance.exchanges[instance.first_trained :]):
        return NO_ANSWER  # only EOS: it would teach the model to say nothing
    if any(not len(prompt) for prompt, _ in instance.exchanges):
        return NO_QUESTION  # the first token of an answer would have nothing to be predicted from
    return None


def _count(counts: Counter, what: str, num_tokens: int, num_trained: int) -> None:
    counts[what, "instances"] += 1
    counts[what, "tokens"] += num_tokens
    counts[what, "trained"] += num_trained
