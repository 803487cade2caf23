"""The engines behind `generator.Generator`, chosen by configuration: our own, vLLM's, any OpenAI-compatible server."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_chimed.records import Candidate
from megatron_chimed.rejection.config import GeneratorOptions, Sampling
from megatron_chimed.rejection.generator import Generator, SampleRequest
from megatron_chimed.text.template import Renderer


class MegatronGenerator(Generator):
    """The training checkpoint itself, over tensor-parallel ranks. A batch is computed as one."""

    def __init__(self, checkpoint: str | Path, options: GeneratorOptions, renderer: Renderer):
        """Raises InputError as `inference.client.Engine`."""
        from megatron_chimed.inference.client import Engine

        self.tokenizer = renderer.tokenizer
        self.engine = Engine(
            checkpoint,
            tensor_parallel=options.tensor_parallel,
            dtype=options.dtype,
            batch_size=options.batch_size,
            progress=False,
        )

    def generate(self, asked: Sequence[SampleRequest], sampling: Sampling) -> list[Candidate]:
        """Raises InputError for a prompt that leaves no room for an answer."""
        from megatron_chimed.inference.client import Request

        requests = [
            Request(one.tokens, sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k, one.seed)
            for one in asked
        ]
        eos = self.tokenizer.eos_id
        return [
            asked[place].candidate(
                self.tokenizer.decode(token for token in sample.tokens if token != eos),
                len(sample.tokens),
                sample.finished,
            )
            for batch in self.engine.generate(requests, stop=[eos])
            for place, sample in batch
        ]

    def loglikelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """log p of each continuation."""
        return [score for score, _ in self.engine.loglikelihoods(pairs)]

    def __exit__(self, *error) -> None:
        self.engine.close()


class OpenAIGenerator(Generator):
    """Any server with chat completions. It renders the prompt itself: give it the template of the training.

    Whether a seed makes an answer repeatable is the server's affair. The key is in OPENAI_API_KEY.
    """

    def __init__(self, options: GeneratorOptions):
        """Raises InputError for a URL or a key of another form."""
        from megatron_chimed.api.client import CallSettings, ChatApi

        settings = CallSettings(concurrency=options.concurrency, requests_per_minute=options.requests_per_minute)
        self.api = ChatApi(options.model, options.base_url, settings)

    def generate(self, asked: Sequence[SampleRequest], sampling: Sampling) -> list[Candidate]:
        """A refusal is an empty answer, which selection drops; what failed at all attempts is left out.

        Raises InputError when the server refuses all requests.
        """
        from megatron_chimed.api.client import ChatRequest

        common = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.top_k:
            common["extra_body"] = {"top_k": sampling.top_k}  # no part of OpenAI's own interface; vLLM's takes it
        requests = (
            ChatRequest(
                place,
                [{"role": turn.role, "content": turn.text} for turn in one.prompt.turns],
                {**common, "seed": one.seed},
            )
            for place, one in enumerate(asked)
        )
        return [
            asked[place].candidate(answer.text or "", answer.completion_tokens, answer.finish != "length")
            for place, answer in self.api.complete_all(requests)
            if not answer.failed
        ]

    def __exit__(self, *error) -> None:
        """A connection lives as long as a batch."""


def open_generator(options: GeneratorOptions, checkpoint: str | Path, export: Path, renderer: Renderer) -> Generator:
    """The generator of a checkpoint folder, chosen by configuration. Raises InputError.

    export: where vllm finds a Hugging Face export, made if it is not there; a part that tells the checkpoint is added.
    """
    if options.engine == "megatron":
        return MegatronGenerator(checkpoint, options, renderer)
    if options.engine == "openai":
        return OpenAIGenerator(options)
    from megatron_chimed.rejection.vllm_generator import VllmGenerator

    return VllmGenerator(checkpoint, export, options, renderer)


def describe_sampling(options: GeneratorOptions, sampling: Sampling) -> dict:
    """What of the settings decides the answers; the rest decides how fast they come."""
    decisive = {name: getattr(options, name) for name in ("engine", "dtype")}
    if options.engine == "openai":
        decisive |= {"base_url": options.base_url, "model": options.model}
    return decisive | asdict(sampling)
