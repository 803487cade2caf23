"""A Megatron checkpoint as an engine, from a process that needs neither torch nor Megatron.

    with MegatronEngine("runs/demo/sft/run", tensor_parallel=2, batch_size=64) as engine:
        for batch in engine.generate([Request(prompt, SamplingParams(max_tokens=128, seed=7))], stop=[2]):
            for index, sample in batch:
                ...

A sample is a function of its prompt, its settings and its seed, as far as the arithmetic goes: in other company a logit
may differ in its last bits (`batching`), and the samples of a model with another tensor-parallel size likewise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_chimed.checkpoints import split_adapter
from megatron_chimed.errors import InputError
from megatron_chimed.inference.batching import batches
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.prefixes import ordered
from megatron_chimed.inference.processes import WorkerProcesses
from megatron_chimed.inference.request import Generated, Request
from megatron_chimed.workers import Bar


class MegatronEngine(Engine):
    """Starts the ranks once, serves many calls, and ends them with the `with` block, or with this process."""

    kind = "megatron"

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
        """checkpoint: a folder of Megatron checkpoints, or BASE+ADAPTER; the newest one, or that of `iteration`.
        dtype: of weights and arithmetic, float32 or bfloat16. batch_size: sequences that are computed at once.

        Raises InputError if the checkpoint cannot be read, or the number of ranks does not divide its model.
        """
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype {dtype!r}; expected float32 or bfloat16")
        for name, number in (("tensor_parallel", tensor_parallel), ("batch_size", batch_size)):
            if number < 1:
                raise InputError(f"{name} is {number}; expected at least 1")
        for folder in filter(None, split_adapter(checkpoint)):
            if not folder.is_dir():  # what else may be wrong with it a rank says
                raise InputError(f"{folder}: no such folder; give a folder of Megatron checkpoints")
        self.batch_size, self.progress = batch_size, progress
        settings = {"checkpoint": str(checkpoint), "iteration": iteration, "dtype": dtype}
        self._workers = WorkerProcesses(tensor_parallel, settings)
        try:
            model = self._workers.answer()
        except BaseException:
            self.close()
            raise
        self.head, self.num_ids, self.max_positions = model["head"], model["num_ids"], model["max_positions"]

    def close(self) -> None:
        """End the ranks. Twice is harmless."""
        self._workers.close()

    def generate(self, requests: Sequence[Request], stop: Sequence[int]) -> Iterator[list[tuple[int, Generated]]]:
        """As `Engine.generate`; the batches are those of `batching.batches` over the lengths of the prompts."""
        self._check_requests(requests)
        return self._generate(requests, stop)

    def _generate(self, requests, stop) -> Iterator[list[tuple[int, Generated]]]:
        with self._bar(len(requests), "generate") as bar:
            for batch in batches([len(request.prompt) for request in requests], self.batch_size):
                asked = [self._asked(requests[i]) for i in batch]
                answers = self._workers.ask({"do": "generate", "requests": asked} | self._limits(stop))
                bar.update(len(batch))
                yield [(i, Generated(*answer)) for i, answer in zip(batch, answers, strict=True)]

    def stream(self, request: Request, stop: Sequence[int]) -> Iterator[int]:
        """As `Engine.stream`. A token is computed only when it is asked for; one sample at a time: the next call of the
        engine ends it."""
        self._need("lm", "generation")
        self._check_request(request, "the request")
        return self._stream({"request": self._asked(request)} | self._limits(stop))

    def _stream(self, asked: dict) -> Iterator[int]:
        token = self._workers.ask({"do": "stream"} | asked)
        while token is not None:
            yield token
            token = self._workers.ask({"do": "next"})

    def _asked(self, request: Request) -> dict:
        """A request as JSON."""
        return {"prompt": [int(token) for token in request.prompt], "params": vars(request.params)}

    def _limits(self, stop: Sequence[int]) -> dict:
        """Where samples end, and the ids that they may have."""
        return {"stop": [int(token) for token in stop], "num_ids": self.sampled_ids or self.num_ids}

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """As `Engine.loglikelihoods`."""
        self._check_pairs(pairs)
        asked = [[[int(token) for token in side] for side in pair] for pair in pairs]
        whole = [context + continuation for context, continuation in asked]
        return [(score, greedy) for score, greedy in self._score("loglikelihoods", "pairs", asked, whole)]

    def rewards(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """As `Engine.rewards`."""
        self._check_sequences(sequences)
        asked = [[int(token) for token in sequence] for sequence in sequences]
        return self._score("rewards", "sequences", asked, asked)

    def _score(self, do: str, key: str, asked: list, sequences: list[list[int]]) -> list:
        """Results in the order of `asked`, computed in batches of what begins alike."""
        results = [None] * len(asked)
        with self._bar(len(asked), do) as bar:
            for batch in ordered(sequences, self.batch_size):
                answers = self._workers.ask({"do": do, key: [asked[i] for i in batch]})
                for i, answer in zip(batch, answers, strict=True):
                    results[i] = answer
                bar.update(len(batch))
        return results

    def _bar(self, total: int, what: str) -> Bar:
        return Bar(total=total, desc=what, unit="seq", disable=not self.progress)
