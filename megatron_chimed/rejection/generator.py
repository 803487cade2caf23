"""Who samples answers: one interface over our engine, vLLM and any OpenAI-compatible server.

A generator is asked for a batch of answers, each with a seed of its own that follows from (round, prompt, sample), and
gives candidates that carry their keys: an answer is known by what was asked, never by its place. Where the engine
allows it, an answer does not depend on its batch, nor on whether a run was interrupted. The batches themselves are cut
from a fixed order, so that an interrupted run computes the same ones again, bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from megatron_chimed.errors import InputError
from megatron_chimed.records import Candidate, Prompt
from megatron_chimed.rejection.config import Sampling
from megatron_chimed.rejection.keys import draw
from megatron_chimed.rejection.store import CandidateStore
from megatron_chimed.text.template import Renderer
from megatron_chimed.workers import Bar


@dataclass(frozen=True)
class SampleRequest:
    """One answer to be sampled: its key, its prompt as turns and as token ids, and the seed."""

    key: tuple[int, str, int]
    prompt: Prompt
    tokens: list[int]
    seed: int

    def candidate(self, response: str, num_tokens: int, finished: bool) -> Candidate:
        """The candidate that answers it."""
        return Candidate(*self.key, response=response, num_tokens=num_tokens, finished=finished)


class Generator(ABC):
    """Samples from one model. Used by `with`."""

    @abstractmethod
    def generate(self, asked: Sequence[SampleRequest], sampling: Sampling) -> list[Candidate]:
        """An answer to each that is asked for; one that could not be had for now is left out."""

    def loglikelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float] | None:
        """log p, in nats, of each (context, continuation) under the model; None where the engine does not tell."""
        return None

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *error) -> None:
        """Let the engine go."""


def build_requests(
    prompts: Sequence[Prompt], renderer: Renderer, *, round: int, n: int, seed: tuple
) -> list[SampleRequest]:
    """`n` answers to each prompt, in the order in which they are computed: prompts of like length together.

    seed: a key; the seed of an answer follows from it, the prompt's id and the sample's number.
    """
    rendered = [(prompt, renderer.render_prompt(prompt.turns).tolist()) for prompt in prompts]
    rendered.sort(key=lambda one: (len(one[1]), one[0].id))
    return [
        SampleRequest((round, prompt.id, sample), prompt, tokens, draw(*seed, prompt.id, sample))
        for prompt, tokens in rendered
        for sample in range(n)
    ]


def batches_left(asked: Sequence[SampleRequest], store: CandidateStore, size: int) -> Iterator[list[SampleRequest]]:
    """What is not in the store yet. Batches are cut from all that is asked, so that each is the same in every run."""
    for start in range(0, len(asked), size):
        left = [one for one in asked[start : start + size] if one.key not in store.candidates]
        if left:
            yield left


def generate_into(
    store: CandidateStore, asked: Sequence[SampleRequest], generator: Generator, sampling: Sampling, batch_size: int
) -> None:
    """Sample all that the store lacks, batch by batch. Raises InputError if answers are missing in the end."""
    with Bar(total=len(asked), initial=len(store.candidates), desc="generate", unit="answer") as bar:
        for batch in batches_left(asked, store, batch_size):
            answers = generator.generate(batch, sampling)
            unknown = {one.key for one in answers} - {one.key for one in batch}
            assert not unknown, f"answers to what was not asked: {unknown}"
            store.append(answers)
            bar.update(len(answers))
    missing = sum(one.key not in store.candidates for one in asked)
    if missing:
        raise InputError(f"{missing} of {len(asked)} answers could not be had; run the command again to ask for them")
