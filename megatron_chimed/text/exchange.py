"""Exchanges of a dialogue as token ids, and how they are joined to what a model learns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Exchange:
    """A user's turn and its answer as int32 ids: prompt [P] with all that stands before the answer, response [R] with
    the id that ends it. Iterating gives these two.

    learnt: uint8 [R], 1 for what is to be learnt, None for all. past: int32 ids of the exchange in front of a later
    one, None for prompt and response as they are. system: the system turn's text that is in the prompt, "" for none.
    first: makes the exchange as the first of a dialogue; None where that is no other.
    """

    __slots__ = ("first", "learnt", "past", "prompt", "response", "system")

    def __init__(
        self,
        prompt: np.ndarray,
        response: np.ndarray,
        learnt: np.ndarray | None = None,
        past: np.ndarray | None = None,
        system: str = "",
        first: "Callable[[], Exchange] | None" = None,
    ):
        self.prompt, self.response, self.learnt, self.past, self.system = prompt, response, learnt, past, system
        self.first = first

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.prompt, self.response))

    @property
    def num_learnt(self) -> int:
        """Tokens to be learnt."""
        return len(self.response) if self.learnt is None else int(self.learnt.sum())

    @property
    def history(self) -> tuple[np.ndarray, ...]:
        """The ids in front of a later exchange, in one piece or two."""
        return (self.prompt, self.response) if self.past is None else (self.past,)

    def as_first(self) -> "Exchange":
        """The exchange as the first of its dialogue, when those before it are left out."""
        return self if self.first is None else self.first()


class Rendered(NamedTuple):
    """tokens [n] int32; loss_mask [n] uint8: 1 for a token to be learnt, which are those of a response and its end."""

    tokens: np.ndarray
    loss_mask: np.ndarray


def join(exchanges: Sequence[Exchange], first_target: int = 0) -> Rendered:
    """Exchanges end to end; the responses from exchange `first_target` on are to be learnt, those before it history."""
    tokens: list[np.ndarray] = []
    learnt: list[int] = []
    masked: list[tuple[int, np.ndarray]] = []
    for number, exchange in enumerate(exchanges):
        if number < first_target:
            ids = exchange.history
            learnt += [0] * len(ids)
        else:
            ids = exchange.prompt, exchange.response
            learnt += (0, 1)
            if exchange.learnt is not None:
                masked.append((sum(map(len, tokens)) + len(exchange.prompt), exchange.learnt))
        tokens += ids
    mask = np.repeat(np.array(learnt, np.uint8), list(map(len, tokens)))
    for start, values in masked:
        mask[start : start + len(values)] = values
    return Rendered(np.concatenate(tokens), mask)


def is_chain(exchanges: Iterable[Exchange]) -> bool:
    """Whether each answer that is learnt stands in the history of the next question as it is learnt."""
    return all(exchange.past is None for exchange in exchanges)


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many ids two arrays, [n] and [m], have in common at their start."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
