"""Sampling by vLLM from the Hugging Face export of a checkpoint; vllm is imported only when it is asked for.

Written against vLLM's documented interface (`LLM`, `SamplingParams`, `TokensPrompt`). It wants GPUs and an environment
of its own (extra `vllm`), and was never run in the tests: they show what happens without vllm, and hold the calls
against stand-ins for these three classes.

Tensor parallelism is vLLM's. For data parallelism each copy of the model is a process of its own with GPUs of its own,
and gets every n-th answer: as each has its seed, it does not matter which copy draws it.
"""

import importlib.util
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.records import Candidate
from megatron_chimed.rejection.config import GeneratorOptions, Sampling
from megatron_chimed.rejection.generator import Generator, SampleRequest
from megatron_chimed.steps import fingerprint
from megatron_chimed.text.template import Renderer

Answer = tuple[list[int], bool]


class VllmGenerator(Generator):
    """One or several vLLM engines on this machine."""

    def __init__(self, checkpoint: str | Path, export: Path, options: GeneratorOptions, renderer: Renderer):
        """Raises InputError where vllm is not installed, or the checkpoint cannot be exported."""
        if importlib.util.find_spec("vllm") is None:
            raise InputError(
                "generator.engine vllm: vllm is not installed; install the extra `vllm` into an environment of its "
                "own, or choose megatron"
            )
        self.tokenizer = renderer.tokenizer
        # An export of what the folder held before has another name.
        export = export.with_name(f"{export.name}-{fingerprint(Path(checkpoint))[:12]}")
        if not export.exists():
            from megatron_chimed.convert.checkpoint import megatron_to_hf

            megatron_to_hf(checkpoint, export)
        settings = {"model": str(export), "dtype": options.dtype, "tensor_parallel_size": options.tensor_parallel}
        if options.data_parallel == 1:
            self.copies: list[Any] = [_Here(settings)]
        else:
            gpus = split_gpus(options.data_parallel, options.tensor_parallel)
            self.copies = [_Elsewhere(settings, share) for share in gpus]

    def generate(self, asked: Sequence[SampleRequest], sampling: Sampling) -> list[Candidate]:
        """Answers of all copies."""
        eos, count = self.tokenizer.eos_id, len(self.copies)
        shared = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,  # every version takes -1 for all
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": [eos],
            "detokenize": False,
        }
        shares = [asked[place::count] for place in range(count)]
        for copy, share in zip(self.copies, shares, strict=True):
            copy.send([(one.tokens, {**shared, "seed": one.seed}) for one in share])
        found = []
        for copy, share in zip(self.copies, shares, strict=True):
            for one, (tokens, finished) in zip(share, copy.receive(), strict=True):
                text = self.tokenizer.decode(token for token in tokens if token != eos)
                found.append(one.candidate(text, len(tokens), finished))
        return found

    def __exit__(self, *error) -> None:
        for copy in self.copies:
            copy.close()


def split_gpus(copies: int, each: int) -> list[list[str]]:
    """The GPUs of each copy: those of CUDA_VISIBLE_DEVICES, else 0, 1, ...

    Raises InputError when CUDA_VISIBLE_DEVICES names too few.
    """
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = visible or [str(number) for number in range(copies * each)]
    if len(gpus) < copies * each:
        raise InputError(f"generator: {copies} x {each} GPUs are asked for, CUDA_VISIBLE_DEVICES names {len(gpus)}")
    return [gpus[place * each : (place + 1) * each] for place in range(copies)]


class _Here:
    """An engine in this process."""

    def __init__(self, settings: dict[str, Any]):
        from vllm import LLM

        self.engine = LLM(**settings)
        self.answers: list[Answer] = []

    def send(self, work: list[tuple[list[int], dict]]) -> None:
        """Compute at once."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens, _ in work]
        done = self.engine.generate(prompts, [SamplingParams(**params) for _, params in work], use_tqdm=False)
        outputs = [one.outputs[0] for one in done]
        self.answers = [(list(output.token_ids), output.finish_reason == "stop") for output in outputs]

    def receive(self) -> list[Answer]:
        """What was computed."""
        return self.answers

    def close(self) -> None:
        """The engine ends with this process."""


class _Elsewhere:
    """An engine in a process of its own."""

    def __init__(self, settings: dict[str, Any], gpus: list[str]):
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, settings, gpus), daemon=False)
        self.process.start()
        theirs.close()

    def send(self, work: list[tuple[list[int], dict]]) -> None:
        """Ask the process."""
        self.channel.send(work)

    def receive(self) -> list[Answer]:
        """Its answers. Raises InputError when it has died."""
        try:
            return self.channel.recv()
        except EOFError:
            raise InputError("a vLLM process died; its own message stands above") from None

    def close(self) -> None:
        """End the process."""
        self.channel.close()
        self.process.join()


def _serve(channel: Connection, settings: dict[str, Any], gpus: list[str]) -> None:
    """The life of such a process: it ends when the other side has closed the channel."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    engine = _Here(settings)
    while True:
        try:
            work = channel.recv()
        except EOFError:
            return
        engine.send(work)
        channel.send(engine.receive())
