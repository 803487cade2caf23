"""Make training examples of dialogues, each fit into a sequence; what is lost on the way is counted to the token.

Two modes see the same targets, each behind the same tokens (`tests/packing/test_examples.py` shows it), a third only
a part:

- per-turn, the paper's: one example for each answer, its history and question in front, the loss on that answer;
- whole, the efficient one: one example for each dialogue, the loss on all its answers;
- last: one example for each dialogue, the loss on its last answer, as in rejection sampling, where the others are the
  history that the last one was sampled for.

Where a template writes an answer in the history otherwise than where it is learnt (Qwen3 leaves its thinking out), no
sequence holds both: a dialogue of several such answers has an example for each in the mode whole too.

An example that is too long loses its oldest exchanges first; a system turn stays. If the last exchange alone is too
long, the oldest tokens of its question go, but never the system turn, ids and the template's own texts. Its answer is
never cut: if that does not fit, the example is dropped. So a target of a long dialogue may see less in whole mode, or
be lost with an old exchange, where per-turn mode still trains it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megatron_chimed.text.exchange import Exchange, Rendered, is_chain, join
from megatron_chimed.text.renderer import Renderer

MODES = ("whole", "per-turn", "last")

TOO_LONG = "response longer than the sequence"
NO_ANSWER = "answer without tokens"
NO_QUESTION = "question without tokens"
NOTHING_LEARNT = "no answer that is to be learnt"


class Example(NamedTuple):
    """A training example: a chain of exchanges, of which the answers from exchange `first_target` on are targets."""

    exchanges: Sequence[Exchange]
    first_target: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of questions and answers, BOS and EOS included."""
        past, targets = self.exchanges[: self.first_target], self.exchanges[self.first_target :]
        return sum(len(one.prompt) + len(one.response) for one in targets) + sum(
            len(ids) for one in past for ids in one.history
        )

    @property
    def num_target_tokens(self) -> int:
        """Tokens of the answers that are to be learnt, with the id that ends each."""
        return sum(one.num_learnt for one in self.exchanges[self.first_target :])

    def without_oldest(self) -> "Example":
        """The example without its first exchange; the next one takes its place, behind the system turn."""
        first, *others = self.exchanges[1:]
        return Example([first.as_first(), *others], max(self.first_target - 1, 0))


def make_examples(exchanges: Sequence[Exchange], mode: str) -> Iterator[Example]:
    """Make the examples of one dialogue; mode: one of MODES. An answer that is not to be learnt makes none alone."""
    if mode == "whole" and is_chain(exchanges):
        yield Example(exchanges)
    elif mode == "last":
        yield Example(exchanges, len(exchanges) - 1)
    else:
        targets = [number for number, one in enumerate(exchanges) if one.num_learnt]
        for number in targets or [len(exchanges) - 1]:
            yield Example(exchanges[: number + 1], number)


def fit_example(example: Example, limit: int, renderer: Renderer, counts: Counter) -> Rendered | None:
    """Truncate an example to at most `limit` tokens, or drop it: then None.

    counts, which is counted up, holds for what came in ("in"), lost its oldest turns ("shortened"), had its prompt
    truncated ("cut"), was dropped ("dropped") and is left ("kept"): examples under (what, "instances"), their tokens
    under (what, "tokens"), of these the targets under (what, "trained"), the names that a manifest has. It holds for
    tokens and for targets: in = shortened + cut + dropped + kept. Reasons are counted under ("reason", reason).

    Returns tokens [n] and their loss mask [n], n <= limit.
    """
    before = size, targets = example.num_tokens, example.num_target_tokens
    _count(counts, "in", *before)
    reason, left, truncated_prompt = _useless(example), example, 0
    while reason is None and size > limit and len(left.exchanges) > 1:
        left = left.without_oldest()
        size, targets = left.num_tokens, left.num_target_tokens
    truncated_turns = before[0] - size, before[1] - targets
    if reason is None and size > limit:
        (only,) = left.exchanges
        prompt = renderer.cut_prompt(only.prompt, limit - len(only.response), only.system)
        if prompt is None:
            reason = TOO_LONG
        else:
            truncated_prompt, size = size - limit, limit
            left = Example([Exchange(prompt, only.response, only.learnt)])
    if reason is not None:
        _count(counts, "dropped", *before)
        counts["reason", reason] += 1
        return None
    if truncated_turns[0]:
        _count(counts, "shortened", *truncated_turns)
    if truncated_prompt:
        _count(counts, "cut", truncated_prompt, 0)
    _count(counts, "kept", size, targets)
    return join(*left)


def _useless(example: Example) -> str | None:
    """Find why an example is dropped whatever its length; None if it is not."""
    if not example.num_target_tokens:
        return NOTHING_LEARNT
    if any(len(one.response) == 1 and one.num_learnt for one in example.exchanges[example.first_target :]):
        return NO_ANSWER  # only EOS: it would teach the model to say nothing
    if any(not len(one.prompt) for one in example.exchanges):
        return NO_QUESTION  # the first token of an answer would have nothing to be predicted from
    return None


def _count(counts: Counter, what: str, num_tokens: int, num_target_tokens: int) -> None:
    """Count an example, or a part of one, under the names that a manifest has."""
    counts[what, "instances"] += 1
    counts[what, "tokens"] += num_tokens
    counts[what, "trained"] += num_target_tokens
