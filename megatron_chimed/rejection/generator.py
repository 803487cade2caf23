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
from megatron_chimed.records import Candidate, Prompt
from megatron_chimed.rejection.config import Sampling
from megatron_chimed.rejection.keys import keyed_draw
from megatron_chimed.rejection.store import CandidateStore
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.tokenizer import Tokenizer
from megatron_chimed.workers import Bar


@dataclass(frozen=True)
class SampleRequest:
    """One answer to be sampled: its key, its prompt as turns and as token ids, and the seed."""

    key: tuple[int, str, int]
    prompt: Prompt
    tokens: list[int]
    seed: int

    def candidate(self, sample: Generated, tokenizer: Tokenizer) -> Candidate:
        """The candidate that a sample is. A refusal of a server is an empty answer, which selection drops."""
        text, count = sample.text, sample.num_tokens
        if text is None:
            text = tokenizer.decode(token for token in sample.tokens if token != tokenizer.eos_id)
        count = len(sample.tokens) if count is None else count
        return Candidate(*self.key, response=text, num_tokens=count, finished=sample.finished)


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
    engine: Engine, requests: Sequence[SampleRequest], sampling: Sampling, tokenizer: Tokenizer
) -> list[Candidate]:
    """An answer to each request, in any order; one that could not be had for now is left out.

    Raises InputError for a prompt that leaves no room for an answer, and where a server refuses all requests.
    """
    asked = [Request(one.tokens, sampling.params(one.seed), one.prompt.turns) for one in requests]
    batches = engine.generate(asked, stop=[tokenizer.eos_id])
    return [requests[place].candidate(answer, tokenizer) for batch in batches for place, answer in batch]


def generate_into(
    store: CandidateStore,
    requests: Sequence[SampleRequest],
    engine: Engine,
    sampling: Sampling,
    tokenizer: Tokenizer,
    batch_size: int,
) -> None:
    """Sample all that the store lacks, batch by batch. Raises InputError if answers are missing in the end."""
    with Bar(total=len(requests), initial=len(store.candidates), desc="generate", unit="answer") as bar:
        for batch in batches_left(requests, store, batch_size):
            answers = sample(engine, batch, sampling, tokenizer)
            store.append(answers)
            bar.update(len(answers))
    missing = sum(one.key not in store.candidates for one in requests)
    if missing:
        total = len(requests)
        raise InputError(f"{missing} of {total} answers could not be had; run the command again to ask for them")
