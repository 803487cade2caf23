"""The engine: a Megatron checkpoint that answers in tokens, from a process that needs neither torch nor Megatron.

    with Engine("runs/demo/sft/run", tensor_parallel=2, batch_size=64) as engine:
        for batch in engine.generate([Request(prompt, max_tokens=128, seed=7)], stop=[2]):
            for index, sample in batch:
                ...

A sample is a function of its prompt, its settings and its seed, as far as the arithmetic goes: in other company a logit
may differ in its last bits (`batching`), and the samples of a model with another tensor-parallel size likewise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from megatron_chimed.errors import InputError
from megatron_chimed.inference.batching import batches
from megatron_chimed.inference.ranks import Ranks
from megatron_chimed.inference.request import Generated, Request
from megatron_chimed.workers import Bar

__all__ = ["Engine", "Generated", "Request"]


class Engine:
    """Starts the ranks once, serves many calls, and ends them with the `with` block, or with this process."""

    head: str
    """lm or reward."""

    num_ids: int
    """Token ids are below it."""

    max_positions: int
    """Tokens that a sequence may have, prompt and answer together."""

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        iteration: int | None = None,
        tensor_parallel: int = 1,
        dtype: str = "float32",
        batch_size: int = 16,
        progress: bool = True,
    ):
        """checkpoint: a folder of Megatron checkpoints; the newest one, or that of `iteration`. dtype: of weights and
        arithmetic, float32 or bfloat16. batch_size: sequences that are computed at once.

        Raises InputError if the checkpoint cannot be read, or the number of ranks does not divide its model.
        """
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype {dtype!r}; expected float32 or bfloat16")
        for name, number in (("tensor_parallel", tensor_parallel), ("batch_size", batch_size)):
            if number < 1:
                raise InputError(f"{name} is {number}; expected at least 1")
        if not Path(checkpoint).is_dir():  # what else may be wrong with it a rank says
            raise InputError(f"{checkpoint}: no such folder; give a folder of Megatron checkpoints")
        self.batch_size, self.progress = batch_size, progress
        settings = {"checkpoint": str(checkpoint), "iteration": iteration, "dtype": dtype}
        self._ranks = Ranks(tensor_parallel, settings)
        try:
            model = self._ranks.answer()
        except BaseException:
            self.close()
            raise
        self.head, self.num_ids, self.max_positions = model["head"], model["num_ids"], model["max_positions"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """End the ranks. Twice is harmless."""
        self._ranks.close()

    def generate(self, requests: Sequence[Request], stop: Sequence[int]) -> Iterator[list[tuple[int, Generated]]]:
        """Draw all samples; yields each batch, as it is finished, as (index of the request, sample).

        The batches are those of `batching.batches` over the lengths of the prompts. A sample ends with a token of
        `stop`, or where its max_tokens or the model's positions end. Raises InputError naming the request that is wrong
        or leaves no room for an answer, before anything is computed.
        """
        self._need("lm", "generation")
        for index, request in enumerate(requests):
            self._check_request(request, f"request {index}")
        return self._generate(requests, [int(token) for token in stop])

    def _generate(self, requests, stop) -> Iterator[list[tuple[int, Generated]]]:
        with self._bar(len(requests), "generate") as bar:
            for batch in batches([len(request.prompt) for request in requests], self.batch_size):
                asked = [self._asked(requests[i]) for i in batch]
                answers = self._ranks.ask({"do": "generate", "requests": asked, "stop": stop})
                bar.update(len(batch))
                yield [(i, Generated(*answer)) for i, answer in zip(batch, answers, strict=True)]

    def stream(self, request: Request, stop: Sequence[int]) -> Iterator[int]:
        """The tokens of one sample, each as soon as it is drawn: those that `generate` gives, with the stop token.

        Whoever has enough leaves off: a token is computed only when it is asked for. One sample at a time: the next
        call of the engine ends it. Raises InputError as `generate`.
        """
        self._need("lm", "generation")
        self._check_request(request, "the request")
        return self._stream({"request": self._asked(request), "stop": [int(token) for token in stop]})

    def _stream(self, asked: dict) -> Iterator[int]:
        token = self._ranks.ask({"do": "stream"} | asked)
        while token is not None:
            yield token
            token = self._ranks.ask({"do": "next"})

    def _asked(self, request: Request) -> dict:
        """A request as JSON."""
        return vars(request) | {"prompt": [int(token) for token in request.prompt]}

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the sum of log p of the continuation's tokens, in nats, and whether greedy
        decoding would give just them.

        Raises InputError naming the pair with an empty side, an unknown token, or more tokens than the model has
        positions (the continuation's last one needs none).
        """
        self._need("lm", "log-likelihoods")
        for index, (context, continuation) in enumerate(pairs):
            if not len(context) or not len(continuation):
                raise InputError(
                    f"pair {index}: an empty side; expected at least one token in context and continuation"
                )
            self._check_tokens([*context, *continuation], f"pair {index}", self.max_positions + 1)
        asked = [[[int(token) for token in side] for side in pair] for pair in pairs]
        lengths = [len(context) + len(continuation) for context, continuation in asked]
        return [(score, greedy) for score, greedy in self._score("loglikelihoods", "pairs", asked, lengths)]

    def rewards(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each sequence, at its last token. Raises InputError naming the sequence that is empty, longer
        than the model's positions, or has an unknown token; and for a model without a reward head."""
        self._need("reward", "rewards")
        for index, sequence in enumerate(sequences):
            self._check_tokens(sequence, f"sequence {index}", self.max_positions)
        asked = [[int(token) for token in sequence] for sequence in sequences]
        return self._score("rewards", "sequences", asked, [len(sequence) for sequence in asked])

    def _score(self, do: str, key: str, asked: list, lengths: list[int]) -> list:
        """Results in the order of `asked`, computed in batches of like length."""
        results = [None] * len(asked)
        with self._bar(len(asked), do) as bar:
            for batch in batches(lengths, self.batch_size):
                answers = self._ranks.ask({"do": do, key: [asked[i] for i in batch]})
                for i, answer in zip(batch, answers, strict=True):
                    results[i] = answer
                bar.update(len(batch))
        return results

    def _bar(self, total: int, what: str) -> Bar:
        return Bar(total=total, desc=what, unit="seq", disable=not self.progress)

    def _need(self, head: str, what: str) -> None:
        if self.head != head:
            raise InputError(f"{what} need a model with the head {head!r}, and this one's is {self.head!r}")

    def _check_request(self, request: Request, where: str) -> None:
        wrong = [
            f"{name} is {getattr(request, name)}; expected {expected}"
            for name, good, expected in (
                ("max_tokens", request.max_tokens >= 1, "at least 1"),
                ("temperature", 0 <= request.temperature < float("inf"), "0 or more"),
                ("top_p", 0 < request.top_p <= 1, "above 0 and at most 1"),
                ("top_k", request.top_k >= 0, "0 or more"),
                ("seed", 0 <= request.seed < 1 << 64, "0 to 2^64 - 1"),
            )
            if not good
        ]
        if wrong:
            raise InputError(f"{where}: {'; '.join(wrong)}")
        self._check_tokens(request.prompt, where, self.max_positions - 1)

    def _check_tokens(self, tokens: Sequence[int], where: str, longest: int) -> None:
        if not 1 <= len(tokens) <= longest:
            raise InputError(f"{where} has {len(tokens)} tokens; expected 1 to {longest}, as the model has "
                             f"{self.max_positions} positions")  # fmt: skip
        unknown = [int(token) for token in tokens if not 0 <= token < self.num_ids]
        if unknown:
            raise InputError(f"{where} has the token {unknown[0]}; the model's ids are 0 to {self.num_ids - 1}")
