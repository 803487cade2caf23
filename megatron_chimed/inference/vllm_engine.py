"""A Hugging Face folder in vLLM; vllm is imported only when it is asked for.

Written against vLLM's documented interface (`LLM`, `SamplingParams`, `TokensPrompt`). It wants GPUs and an environment
of its own (extra `vllm`), and was never run in the tests: they show what happens without vllm, and hold the calls
against stand-ins for these three classes.

Tensor parallelism is vLLM's. For data parallelism each copy of the model is a process of its own with GPUs of its own,
and gets every n-th request: as each has its seed, it does not matter which copy draws it.
"""

import importlib.util
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.request import Generated, Request, SamplingParams

Answer = tuple[list[int], bool]
"""(new tokens, whether a stop token ended them)."""


def require_vllm() -> None:
    """Raise InputError where vllm is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vllm is not installed; install the extra `vllm` into an environment of its own, or take another engine"
        )


class VllmEngine(Engine):
    """One or several copies of a model on this machine."""

    kind = "vllm"

    def __init__(self, folder: str | Path, *, tensor_parallel: int = 1, data_parallel: int = 1, dtype: str = "auto"):
        """Raises InputError where vllm is not installed."""
        require_vllm()
        settings = {"model": str(folder), "dtype": dtype, "tensor_parallel_size": tensor_parallel}
        settings["skip_tokenizer_init"] = True
        if data_parallel == 1:
            self.copies: list[Any] = [_Here(settings)]
        else:
            self.copies = [_Elsewhere(settings, share) for share in split_gpus(data_parallel, tensor_parallel)]
        self.num_ids, self.max_positions = self.copies[0].limits()

    def generate(self, requests: Sequence[Request], stop: Sequence[int]) -> Iterator[list[tuple[int, Generated]]]:
        """As `Engine.generate`, all samples as one batch."""
        self._check_requests(requests)
        never = range(self.sampled_ids or self.num_ids, self.num_ids)
        work = [(list(one.prompt), settings_of(one.params, stop, never)) for one in requests]
        yield list(enumerate(Generated(*answer) for answer in self._share("sample", work)))

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """As `Engine.loglikelihoods`."""
        self._check_pairs(pairs)
        return self._share("score", [(list(context), list(continuation)) for context, continuation in pairs])

    def _share(self, do: str, work: list) -> list:
        """Let each copy do every n-th piece of work; the results in the order of the work."""
        count, results = len(self.copies), [None] * len(work)
        for number, copy in enumerate(self.copies):
            copy.send(do, work[number::count])
        for number, copy in enumerate(self.copies):
            results[number::count] = copy.receive()
        return results

    def close(self) -> None:
        """End the copies."""
        while self.copies:
            self.copies.pop().close()


def settings_of(params: SamplingParams, stop: Sequence[int], never: Sequence[int]) -> dict[str, Any]:
    """The fields of vLLM's own SamplingParams. never: ids that must not be sampled, 1,024 at most.

    They get a bias: vLLM's `allowed_token_ids` would send a list as long as the vocabulary with every request, and its
    newer model runner takes no more than 1,024 of them.
    """
    bias = {"logit_bias": dict.fromkeys(never, float("-inf"))} if never else {}
    return bias | {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,  # every version takes -1 for all
        "seed": params.seed,
        "stop_token_ids": list(stop),
        "detokenize": False,
    }


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
    """A copy of the model in this process."""

    def __init__(self, settings: dict[str, Any]):
        from vllm import LLM

        self.model = LLM(**settings)
        self.results: list = []

    def limits(self) -> tuple[int, int]:
        """(ids, positions) of the model."""
        config = self.model.llm_engine.model_config
        return config.get_vocab_size(), config.max_model_len

    def send(self, do: str, work: list) -> None:
        """Compute at once."""
        self.results = self._sample(work) if do == "sample" else self._score(work)

    def receive(self) -> list:
        """What was computed."""
        return self.results

    def _sample(self, work: list[tuple[list[int], dict]]) -> list[Answer]:
        outputs = [answer.outputs[0] for answer in self._run(work)]
        return [(list(one.token_ids), one.finish_reason == "stop") for one in outputs]

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        wanted = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1, "detokenize": False}
        answers = self._run([([*context, *continuation], wanted) for context, continuation in pairs])
        scores = []
        for (context, continuation), answer in zip(pairs, answers, strict=True):
            # At each position: the prompt's own token, and the most likely one if that is another.
            places = answer.prompt_logprobs[len(context) :]
            own = [place[token] for place, token in zip(places, continuation, strict=True)]
            scores.append((sum(one.logprob for one in own), all(one.rank == 1 for one in own)))
        return scores

    def _run(self, work: list[tuple[list[int], dict]]) -> list:
        import vllm

        prompts = [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens, _ in work]
        return self.model.generate(prompts, [vllm.SamplingParams(**one) for _, one in work], use_tqdm=False)

    def close(self) -> None:
        """Let go of the model."""
        del self.model


class _Elsewhere:
    """A copy of the model in a process of its own."""

    def __init__(self, settings: dict[str, Any], gpus: list[str]):
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, settings, gpus), daemon=False)
        self.process.start()
        theirs.close()

    def limits(self) -> tuple[int, int]:
        """(ids, positions) of the model."""
        self.channel.send(("limits", None))
        return self.receive()

    def send(self, do: str, work: list) -> None:
        """Ask the process."""
        self.channel.send((do, work))

    def receive(self) -> Any:
        """Its results. Raises InputError when it has died."""
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
    copy = _Here(settings)
    while True:
        try:
            do, work = channel.recv()
        except EOFError:
            return
        if do == "limits":
            channel.send(copy.limits())
        else:
            copy.send(do, work)
            channel.send(copy.receive())
