"""Sample answers to prompts by any engine, batch by batch, into a store.

Each answer has a seed of its own that follows from (round, prompt, sample), and is known by what was asked, never by
its place. Where the engine allows it, an answer does not depend on its batch, nor on whether a run was interrupted. The
batches themselves are cut from a fixed order, so that an interrupted run computes the same ones again, bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_chimed.errors import InputError
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.request import Generated, Request
from megatron_chimed.inference.thinking import marks_of, read_answer, split_thinking
from megatron_chimed.records import Candidate, Prompt
from megatron_chimed.rejection.config import Sampling
from megatron_chimed.rejection.keys import keyed_draw
from megatron_chimed.rejection.store import CandidateStore
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.workers import Bar


@dataclass(frozen=True)
class SampleRequest:
    """One answer to be sampled: its key, its prompt as turns and as token ids, and the seed."""

    key: tuple[int, str, int]
    prompt: Prompt
    tokens: list[int]
    seed: int

    def candidate(self, sample: Generated, renderer: Renderer) -> Candidate:
        """The candidate that a sample is, its thinking apart. A refusal of a server is an empty answer, and so is one
        whose thinking never ended; selection drops them."""
        if sample.text is None:
            thinking, text = read_answer(sample.tokens, renderer)
        else:
            thinking, text = split_thinking(sample.text, marks_of(renderer.template))
        count = len(sample.tokens) if sample.num_tokens is None else sample.num_tokens
        return Candidate(*self.key, response=text, num_tokens=count, finished=sample.finished, thinking=thinking)


def build_requests(
    prompts: Sequence[Prompt], renderer: Renderer, *, round: int, n: int, seed: tuple
) -> list[SampleRequest]:
    """`n` answers to each prompt, in the order in which they are computed: prompts of like length together.

    seed: a key; the seed of an answer follows from it, the prompt's id and the sample's number.
    """
    rendered = [(prompt, renderer.render_prompt(prompt.turns).tolist()) for prompt in prompts]
    rendered.sort(key=lambda one: (len(one[1]), one[0].id))
    return [
        SampleRequest((round, prompt.id, sample), prompt, tokens, keyed_draw(*seed, prompt.id, sample))
        for prompt, tokens in rendered
        for sample in range(n)
    ]


def batches_left(requests: Sequence[SampleRequest], store: CandidateStore, size: int) -> Iterator[list[SampleRequest]]:
    """What is not in the store yet. Batches are cut from all that is asked, so that each is the same in every run."""
    for start in range(0, len(requests), size):
        left = [one for one in requests[start : start + size] if one.key not in store.candidates]
        if left:
            yield left


def sample(
    engine: Engine, requests: Sequence[SampleRequest], sampling: Sampling, renderer: Renderer
) -> list[Candidate]:
    """An answer to each request, in any order; one that could not be had for now is left out.

    Raises InputError for a prompt that leaves no room for an answer, and where a server refuses all requests.
    """
    asked = [Request(one.tokens, sampling.params(one.seed), one.prompt.turns) for one in requests]
    batches = engine.generate(asked, stop=list(renderer.stop_ids))
    return [requests[place].candidate(answer, renderer) for batch in batches for place, answer in batch]


def generate_into(
    store: CandidateStore,
    requests: Sequence[SampleRequest],
    engine: Engine,
    sampling: Sampling,
    renderer: Renderer,
    batch_size: int,
) -> None:
    """Sample all that the store lacks, batch by batch. Raises InputError if answers are missing in the end."""
    with Bar(total=len(requests), initial=len(store.candidates), desc="generate", unit="answer") as bar:
        for batch in batches_left(requests, store, batch_size):
            answers = sample(engine, batch, sampling, renderer)
            store.append(answers)
            bar.update(len(answers))
    missing = sum(one.key not in store.candidates for one in requests)
    if missing:
        total = len(requests)
        raise InputError(f"{missing} of {total} answers could not be had; run the command again to ask for them")
