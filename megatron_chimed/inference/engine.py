"""The interface of all engines: tokens in, samples, log-likelihoods and rewards out. No torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Self

from megatron_chimed.errors import InputError
from megatron_chimed.inference.request import Generated, Request


class Engine(ABC):
    """A model at work, of one of `open.KINDS`; used by `with`. What a kind cannot do raises InputError, in one line."""

    kind: str
    """How its name begins, for messages."""

    head: str = "lm"
    """lm or reward."""

    num_ids: int
    """Token ids are below it."""

    sampled_ids: int | None = None
    """Only ids below it are ever sampled, however likely the model holds the others: a model may have more ids than its
    tokenizer. `open.open_engine` takes it from the tokenizer; None is num_ids. It has no say in log-likelihoods."""

    max_positions: int
    """Tokens that a sequence may have, prompt and answer together."""

    @property
    def max_pair(self) -> int:
        """Tokens that the two sides of a log-likelihood may have together: the last one needs no position."""
        return self.max_positions + 1

    @staticmethod
    def open(name: str, **options: Any) -> "Engine":
        """Open ``hf:DIR``, ``vllm:DIR``, ``megatron:DIR`` or ``openai:MODEL``; see `open.open_engine`.

        >>> import megatron_chimed as mc
        >>> with mc.Engine.open("hf:hf") as engine:
        ...     scores = engine.loglikelihoods([([1, 300], [301, 302])])
        >>> scores[0][0] < 0
        True
        """
        opener = import_module("megatron_chimed.inference." + "open")  # which imports this module
        return opener.open_engine(name, **options)

    def generate(self, requests: Sequence[Request], stop: Sequence[int]) -> Iterator[list[tuple[int, Generated]]]:
        """Draw all samples; yields batches, as they are finished, of (index of the request, sample).

        A sample ends with a token of `stop`, or where its max_tokens or the model's positions end. Raises InputError
        naming the request that is wrong or leaves no room for an answer, before anything is computed.
        """
        raise InputError(f"{self.kind}: engines of this kind do not sample")

    def stream(self, request: Request, stop: Sequence[int]) -> Iterator[int]:
        """The tokens of one sample, each as soon as it is drawn: those that `generate` gives, with the stop token."""
        raise InputError(f"{self.kind}: engines of this kind do not stream tokens")

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the sum of log p of the continuation's tokens, in nats, and whether greedy
        decoding would give just them.

        Raises InputError naming the pair with an empty side, an unknown token, or more tokens than `max_pair`.
        """
        raise InputError(f"{self.kind}: engines of this kind give no log-likelihoods")

    def rewards(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each sequence, at its last token. Raises InputError naming the sequence that is empty, longer
        than the model's positions, or has an unknown token; and for a model without a reward head."""
        raise InputError(f"{self.kind}: engines of this kind give no rewards")

    @abstractmethod
    def close(self) -> None:
        """Let go of the model and end its processes. Twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def check_head(self, place: str, wanted: str) -> None:
        """Raise InputError for a model, named `place`, with another head than lm or reward, what is wanted."""
        what = {"lm": "a language model", "reward": "a reward model, of the stage `reward`"}
        if self.head != wanted:
            raise InputError(f"{place}: {what[self.head]}; expected {what[wanted]}")

    def _need(self, head: str, what: str) -> None:
        """Raise InputError for a model with another head."""
        if self.head != head:
            raise InputError(f"{what} need a model with the head {head!r}, and this one's is {self.head!r}")

    def _check_requests(self, requests: Sequence[Request]) -> None:
        """Raise InputError naming the request that is wrong."""
        self._need("lm", "generation")
        for index, request in enumerate(requests):
            self._check_request(request, f"request {index}")

    def _check_request(self, request: Request, where: str) -> None:
        request.params.check(where)
        self._check_tokens(request.prompt, where, self.max_positions - 1)

    def _check_pairs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Raise InputError naming the pair that is wrong."""
        self._need("lm", "log-likelihoods")
        for index, (context, continuation) in enumerate(pairs):
            if not len(context) or not len(continuation):
                raise InputError(
                    f"pair {index}: an empty side; expected at least one token in context and continuation"
                )
            self._check_tokens([*context, *continuation], f"pair {index}", self.max_pair)

    def _check_sequences(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raise InputError naming the sequence that is wrong."""
        self._need("reward", "rewards")
        for index, sequence in enumerate(sequences):
            self._check_tokens(sequence, f"sequence {index}", self.max_positions)

    def _check_tokens(self, tokens: Sequence[int], where: str, longest: int) -> None:
        if not 1 <= len(tokens) <= longest:
            raise InputError(f"{where} has {len(tokens)} tokens; expected 1 to {longest}, as the model has "
                             f"{self.max_positions} positions")  # fmt: skip
        unknown = [int(token) for token in tokens if not 0 <= token < self.num_ids]
        if unknown:
            raise InputError(f"{where} has the token {unknown[0]}; the model's ids are 0 to {self.num_ids - 1}")
