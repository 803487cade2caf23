"""A Hugging Face folder in vLLM, in processes of its own (`vllm_worker`); the caller needs no vllm in its own process.

Tensor parallelism is vLLM's. For data parallelism each copy of the model is a process with GPUs of its own, and gets
every n-th request: as each has its seed, it does not matter which copy draws it.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.convert.stored import stored_dtype, stored_head, stored_labels
from megatron_chimed.errors import InputError
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.processes import WorkerProcesses
from megatron_chimed.inference.request import Generated, Request, SamplingParams
from megatron_chimed.text.tokenizer_folder import has_tokenizer

WORKER = "megatron_chimed.inference.vllm_worker"
PATIENCE = 30.0
"""Seconds in which a copy ends; it gives vLLM half of them to end by itself."""

QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1"}
"""No report to anybody, no hub, and copies that can be reached from this machine alone."""


def require_vllm() -> None:
    """Raise InputError where vllm is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vllm is not installed; install the extra `vllm` into an environment of its own, or take another engine"
        )


class VllmEngine(Engine):
    """One or several copies of a model on this machine."""

    kind = "vllm"

    def __init__(
        self,
        folder: str | Path,
        *,
        head: str = "lm",
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        dtype: str = "auto",
    ):
        """head: lm or reward, what the model must have; dtype: "auto" is that of the weights.

        Raises InputError where vllm is not installed, for a model with another head, and for one that vLLM refuses.
        """
        require_vllm()
        self.head = stored_head(folder)
        self.check_head(str(folder), head)
        if head == "reward":
            _check_reward(folder)
        settings = {
            "model": str(folder),
            "head": head,
            "dtype": stored_dtype(folder) if dtype == "auto" else dtype,
            "tensor_parallel_size": tensor_parallel,
            "skip_tokenizer_init": head == "lm",  # ids go in and come out; its pooling runner wants one all the same
        }
        shares = split_gpus(data_parallel, tensor_parallel) if data_parallel > 1 else [None]
        self.copies: list[WorkerProcesses] = []
        try:
            for share in shares:
                gpus = {} if share is None else {"CUDA_VISIBLE_DEVICES": ",".join(share)}
                given = {name: os.environ.get(name, value) for name, value in QUIET.items()} | gpus
                self.copies.append(WorkerProcesses(1, {"model": settings}, WORKER, given, PATIENCE))
            limits = [copy.answer() for copy in self.copies]
        except BaseException:
            self.close()
            raise
        self.num_ids, self.max_positions = limits[0]["num_ids"], limits[0]["max_positions"]

    @property
    def max_pair(self) -> int:
        """As `Engine.max_pair`. vLLM gives the likelihoods of a prompt, behind which it wants room for a token."""
        return self.max_positions - 1

    def generate(self, requests: Sequence[Request], stop: Sequence[int]) -> Iterator[list[tuple[int, Generated]]]:
        """As `Engine.generate`, all samples as one batch."""
        self._check_requests(requests)
        never = range(self.sampled_ids or self.num_ids, self.num_ids)
        work = [(_ids(one.prompt), settings_of(one.params, _ids(stop), never)) for one in requests]
        yield list(enumerate(Generated(*answer) for answer in self._share("sample", work)))

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """As `Engine.loglikelihoods`."""
        self._check_pairs(pairs)
        work = [(_ids(context), _ids(continuation)) for context, continuation in pairs]
        return [(score, greedy) for score, greedy in self._share("score", work)]

    def rewards(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """As `Engine.rewards`, by vLLM's pooling runner."""
        self._check_sequences(sequences)
        return self._share("rewards", [_ids(sequence) for sequence in sequences])

    def _share(self, do: str, work: list) -> list:
        """Let each copy do every n-th piece of work; the results in the order of the work."""
        count, results = len(self.copies), [None] * len(work)
        if not count:
            raise ChildProcessError("the inference engine has ended; start another one")
        try:
            for number, copy in enumerate(self.copies):
                copy.send({"do": do, "work": work[number::count]})
            for number, copy in enumerate(self.copies):
                results[number::count] = copy.answer()
        except BaseException:  # another copy's answer is not read: none may be asked again
            self.close()
            raise
        return results

    def close(self) -> None:
        """End the copies and all that they have started. Twice is harmless."""
        while self.copies:
            self.copies.pop().close()


def _check_reward(folder: str | Path) -> None:
    """Raise InputError for what vLLM cannot serve as a reward model."""
    if (labels := stored_labels(folder)) != 1:
        raise InputError(f"{folder}: {labels} labels; expected a reward model, which has one")
    if not has_tokenizer(Path(folder)):
        raise InputError(f"{folder}: no tokenizer, which vLLM wants with a reward model; export it with --tokenizer")


def _ids(tokens: Sequence[int]) -> list[int]:
    """Token ids as JSON takes them."""
    return [int(token) for token in tokens]


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
        "ignore_eos": True,  # what is in `stop` ends an answer, and no other id of the folder's generation config
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
