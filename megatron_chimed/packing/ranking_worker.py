"""Render a batch of lines with ranked answers as the tokens of its segments. It runs in worker processes.

Each answer is one segment: the prompt, the answer and the id that ends it, where it is scored. All answers of a group
see the same prompt. Where it is shared, the first segment alone has it, and the others are branches: the prompt's last
token, behind which an answer's first token is predicted, and the answer. If a group is too long for a row, the prompt
loses its oldest exchanges, but no system turn, then the oldest tokens of its question, for all answers alike; an answer
is never cut.
"""

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import located
from megatron_chimed.packing.chunks import RecordBatch, SegmentChunk, gather, parse, token_type
from megatron_chimed.records import RankedGroup, Turn, split_system
from megatron_chimed.text.exchange import Exchange, Rendered, join
from megatron_chimed.text.renderer import Renderer

PAIRINGS = ("adjacent", "all", "extremes")
"""Which answers of a group are compared; see `losses.ranked_pairs`. For "extremes" only the best and worst are kept."""

NO_PAIR = "no two answers of different rank"
TOO_LONG = "answers longer than the row"


class Answers(NamedTuple):
    """A group as ids, int32 arrays. history: exchanges before the question; question: its exchange, of which the prompt
    counts; responses: with the id that ends them; preference_ranks: 0 for the best; shared_prompt: it stands once."""

    history: list[Exchange]
    question: Exchange
    responses: list[np.ndarray]
    preference_ranks: list[int]
    shared_prompt: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments."""
        prompt = len(self.question.prompt) + sum(len(ids) for one in self.history for ids in one.history)
        others = len(self.responses) - 1
        return prompt + others * (1 if self.shared_prompt else prompt) + sum(map(len, self.responses))

    def room_for_prompt(self, limit: int) -> int:
        """Tokens that the prompt may have for the group to have `limit`."""
        room = limit - sum(map(len, self.responses))
        return room - len(self.responses) + 1 if self.shared_prompt else room // len(self.responses)

    def without_oldest(self) -> "Answers":
        """The group without its first exchange; the next one takes its place, behind the system turn."""
        first, *others = (*self.history[1:], self.question)
        *history, question = first.as_first(), *others
        return self._replace(history=history, question=question)


class GroupMaker:
    """Renders batches. It is sent to the worker processes. shuffle_seed: deal the preference ranks of each group out at
    random, for a control that must learn nothing; None for the true ranks."""

    def __init__(
        self, renderer: Renderer, sequence_length: int, pairing: str, shuffle_seed: int | None, shared_prompt: bool
    ):
        self.renderer, self.sequence_length, self.pairing = renderer, sequence_length, pairing
        self.shuffle_seed, self.shared_prompt = shuffle_seed, shared_prompt

    def __call__(self, batch: RecordBatch) -> SegmentChunk:
        """Render a batch, each group a unit. Raises InputError as ``file:line: reason``."""
        groups = [parse(RankedGroup, batch.path, number, line) for number, line in batch.located]
        names = list(dict.fromkeys(group.source for group in groups))
        counts, sizes, segments = Counter(), [], []
        columns = {"group": [], "rank": [], "answer": [], "source": []}
        for number, (group, answers) in enumerate(zip(groups, self._encode(batch, groups), strict=True)):
            fitted = fit_group(answers, self.sequence_length, self.renderer, counts)
            if fitted is None:
                continue
            rendered = _segments(fitted)
            sizes.append(len(rendered))
            segments += rendered
            columns["group"] += [batch.first_record + number] * len(rendered)
            columns["rank"] += fitted.preference_ranks
            columns["answer"] += map(len, fitted.responses)
            columns["source"] += [names.index(group.source)] * len(rendered)
        types = {"group": np.int64, "rank": np.int32, "answer": np.int32, "source": np.int32}
        return SegmentChunk(
            *gather(segments, token_type(self.renderer.tokenizer.vocab_size)),
            np.array(sizes, np.int64),
            {name: np.array(values, types[name]) for name, values in columns.items()},
            names,
            counts,
            len(groups),
            sum(map(len, batch.lines)),
        )

    def _encode(self, batch: RecordBatch, groups: list[RankedGroup]) -> Iterator[Answers]:
        """Encode all groups; when one cannot be encoded, its line is found."""
        chosen = [self._chosen(group) for group in groups]
        dialogues = [
            turns for group, (texts, _) in zip(groups, chosen, strict=True) for turns in _dialogues(group, texts)
        ]
        try:
            encoded = iter(self.renderer.encode_exchanges(dialogues))
        except InputError:
            for (number, _), group, (texts, _) in zip(batch.located, groups, chosen, strict=True):
                with located(batch.path, number):
                    self.renderer.encode_exchanges(_dialogues(group, texts))
            raise
        for texts, ranks in chosen:
            every = [next(encoded) for _ in texts]
            *history, question = every[0]
            responses = [exchanges[-1].response for exchanges in every]
            yield Answers(history, question, responses, ranks, self.shared_prompt)

    def _chosen(self, group: RankedGroup) -> tuple[list[str], list[int]]:
        """Choose (texts, preference ranks) of the answers that are there and that the pairing compares."""
        there = [
            (text, rank) for text, rank in zip(group.responses, group.preference_ranks, strict=True) if text is not None
        ]
        if not there:
            return [group.turns[-1].text], [0]  # one answer of any text: it makes no pair and is dropped
        texts, ranks = [text for text, _ in there], [rank for _, rank in there]
        if self.shuffle_seed is not None:
            random.Random(f"{self.shuffle_seed} {group.id}").shuffle(ranks)
        if self.pairing == "extremes":
            ends = (min(ranks), max(ranks))
            texts = [text for text, rank in zip(texts, ranks, strict=True) if rank in ends]
            ranks = [rank for rank in ranks if rank in ends]
        return texts, ranks


def _dialogues(group: RankedGroup, texts: list[str]) -> list[tuple[Turn, ...]]:
    """List what is encoded of a group: its history once, with the first answer; the question with each answer."""
    first, *others = (Turn("assistant", text) for text in texts)
    system, _ = split_system(group.turns)
    alone = [group.turns[-1]] if system is None else [system, group.turns[-1]]
    return [(*group.turns, first), *((*alone, other) for other in others)]


def _segments(answers: Answers) -> list[Rendered]:
    """Join each answer to the prompt, or to its last token; the mask marks an answer's last id, where it is scored."""
    prompt, found = answers.question.prompt, []
    for number, response in enumerate(answers.responses):
        if number and answers.shared_prompt:
            tokens = np.concatenate([prompt[-1:], response])
        else:
            tokens, _ = join([*answers.history, Exchange(prompt, response)], len(answers.history))
        mask = np.zeros(len(tokens), np.uint8)
        mask[-1] = 1
        found.append(Rendered(tokens, mask))
    return found


def fit_group(answers: Answers, limit: int, renderer: Renderer, counts: Counter) -> Answers | None:
    """Truncate a group to at most `limit` tokens, or drop it: then None.

    counts, which is counted up, holds what came in ("in"), lost its oldest turns ("shortened"), had its prompt
    truncated ("cut"), was dropped and is left ("kept"), each in "instances" (groups), "tokens" and "trained" (answers),
    the names that a manifest has. For tokens: in = shortened + cut + dropped + kept. Reasons are counted under
    ("reason", reason).
    """
    _count(counts, "in", answers, answers.num_tokens)
    if len(set(answers.preference_ranks)) < 2:
        return _drop(counts, answers, NO_PAIR)
    left = answers
    while left.num_tokens > limit and left.history:
        left = left.without_oldest()
    truncated_turns = left
    if left.num_tokens > limit:
        room, question = left.room_for_prompt(limit), left.question
        prompt = renderer.cut_prompt(question.prompt, room, question.system) if room > 0 else None
        if prompt is None:
            return _drop(counts, answers, TOO_LONG)
        left = left._replace(question=Exchange(prompt, question.response))
    for what, before, after in (("shortened", answers, truncated_turns), ("cut", truncated_turns, left)):
        if lost := before.num_tokens - after.num_tokens:
            _count(counts, what, None, lost)
    _count(counts, "kept", left, left.num_tokens)
    return left


def _drop(counts: Counter, answers: Answers, reason: str) -> None:
    _count(counts, "dropped", answers, answers.num_tokens)
    counts["reason", reason] += 1


def _count(counts: Counter, what: str, answers: Answers | None, num_tokens: int) -> None:
    counts[what, "instances"] += 1
    counts[what, "tokens"] += num_tokens
    counts[what, "trained"] += len(answers.responses) if answers else 0
