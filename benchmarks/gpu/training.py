"""Training, one way in this process. Megatron's ways run the project's whole trainer on random tokens; a step lasts
from one forward pass to the next, so that the optimizer and the log are in it.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measurements import KERNELS
from one_way import peak_bytes

from megatron_chimed.backend import cpu


def take_device() -> str:
    """Let "cuda" be the first GPU, or the CPU where there is none; the backend of torch.distributed for it."""
    if cpu.is_needed():
        cpu.install()
        return "gloo"
    torch.cuda.set_device(0)
    return "nccl"


def without_backend() -> contextlib.AbstractContextManager:
    """What is not Megatron's at its own speed: under backend/cpu.py each function of torch passes through Python."""
    return torch._C.DisableTorchFunction() if cpu.is_needed() else contextlib.nullcontext()


class Clock:
    """When each step began, with all that was asked of the device before it done."""

    def __init__(self):
        self.starts: list[float] = []

    def tick(self) -> None:
        """A step begins."""
        if not cpu.is_needed():
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())

    def seconds(self, warm_up: int) -> list[float]:
        """Of each step after the first ones."""
        return [end - start for start, end in zip(self.starts, self.starts[1:], strict=False)][warm_up:]


class RandomRows(torch.utils.data.Dataset):
    """Rows of random tokens [S], in documents of one length; each is the same in every way of training."""

    def __init__(self, rows: int, sequence: int, document: int, vocab: int):
        self.rows, self.sequence, self.document, self.vocab = rows, sequence, document, vocab

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(int(number))
        row = torch.randint(self.vocab, (self.sequence + 1,), generator=draw)
        return {
            "tokens": row[:-1],
            "labels": row[1:],
            "loss_mask": torch.ones(self.sequence),
            "position_ids": torch.arange(self.sequence) % self.document,
        }


def megatron(way: str, given: dict[str, Any]) -> tuple[Clock, float]:
    """The project's trainer, with its own layers ("ours", and of packed rows each kernel), Megatron's local ones
    ("stock"), or Transformer Engine's ("te"); the clock and the last loss."""
    take_device()
    from megatron_chimed.config import Located, RunConfig
    from megatron_chimed.stages.pretrain import STAGE
    from megatron_chimed.stages.stage import Data
    from megatron_chimed.training import trainer

    clock, last = Clock(), [float("nan")]

    def forward_step(*words):
        clock.tick()
        output, loss = STAGE.forward_step(*words)

        def keep(*more):
            total, count, report = loss(*more)
            last[0] = (total / count).detach()
            return total, count, report

        return output, keep

    def build_datasets(config, request):
        rows = RandomRows(sum(request.num_samples), given["sequence"], given["document"], given["vocab"])
        return Data(rows, None, None)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    stage = dataclasses.replace(STAGE, forward_step=forward_step, build_datasets=build_datasets)
    if way == "stock":
        stage = dataclasses.replace(stage, build_model=stock_model)
    settings = {key: Located(value, "benchmark") for key, value in arguments(way, given).items()}
    chosen = {"isolate_documents": way in KERNELS, "attention": way if way in KERNELS else "auto"}
    trainer.run(stage, RunConfig(settings, {key: Located(value, "benchmark") for key, value in chosen.items()}))
    return clock, float(last[0])


def arguments(way: str, given: dict[str, Any]) -> dict[str, Any]:
    """Megatron's arguments."""
    steps = given["warm_up"] + given["steps"] + 1
    return {
        "num-layers": given["layers"], "hidden-size": given["hidden"], "ffn-hidden-size": given["ffn"],
        "num-attention-heads": given["heads"], "vocab-size": given["vocab"], "tokenizer-type": "NullTokenizer",
        "max-position-embeddings": given["sequence"], "seq-length": given["sequence"],
        "position-embedding-type": "rope", "normalization": "RMSNorm", "swiglu": True, "disable-bias-linear": True,
        "untie-embeddings-and-output-weights": True, "attention-dropout": 0.0, "hidden-dropout": 0.0,
        "micro-batch-size": given["micro_batch"], "global-batch-size": given["micro_batch"], "train-iters": steps,
        "lr": 1e-5, "lr-decay-style": "constant", "clip-grad": 1.0,
        "eval-iters": 0, "eval-interval": steps + 1, "log-interval": steps,
        "transformer-impl": "transformer_engine" if way == "te" else "local",
        **({"bf16": True, "use-distributed-optimizer": True} if given["dtype"] == "bfloat16" else {}),
    }  # fmt: skip


def stock_model(options: Any, config: Any, *, vocab_size: int, pg_collection: Any, **place: Any) -> torch.nn.Module:
    """GPTModel with Megatron's local layer specification as it comes."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    return GPTModel(
        config=config.transformer,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=vocab_size,
        max_sequence_length=config.seq_length,
        parallel_output=config.parallel_output,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        pg_collection=pg_collection,
        **place,
    )


def transformers(way: str, given: dict[str, Any]) -> tuple[Clock, float]:
    """transformers' LLaMA with its fastest attention and torch's fused AdamW; the clock and the last loss.

    "transformers": weights, gradients and moments in the dtype, the fastest and least exact; "amp": float32 ones under
    autocast, about as exact as Megatron's; "transformers_packed": as the first, each document by itself, as its
    positions tell.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    device = "cpu" if cpu.is_needed() else "cuda"
    dtype = getattr(torch, given["dtype"])
    config = LlamaConfig(
        hidden_size=given["hidden"], intermediate_size=given["ffn"], num_hidden_layers=given["layers"],
        num_attention_heads=given["heads"], vocab_size=given["vocab"], max_position_embeddings=given["sequence"],
        tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config,
            attn_implementation="flash_attention_2" if flash else "sdpa",
            dtype=torch.float32 if way == "amp" else dtype,
        ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    rows, clock = RandomRows(10**6, given["sequence"], given["document"], given["vocab"]), Clock()
    positions = None
    with without_backend():
        if way == "transformers_packed":
            positions = rows[0]["position_ids"].to(device).expand(given["micro_batch"], -1)
            require_isolation(model, positions, given["document"])
        for step in range(given["warm_up"] + given["steps"] + 1):
            clock.tick()
            numbers = range(step * given["micro_batch"], (step + 1) * given["micro_batch"])
            tokens = torch.stack([rows[number]["tokens"] for number in numbers]).to(device)
            with torch.autocast(device, dtype, enabled=way == "amp"):
                loss = model(tokens, labels=tokens, position_ids=positions).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return clock, loss.item()


@torch.no_grad()
def require_isolation(model: torch.nn.Module, positions: torch.Tensor, document: int) -> None:
    """Raise ValueError unless what a model says of the second document of a row is the same after another first one."""
    tokens = torch.zeros_like(positions)
    other = tokens.clone()
    other[:, :document] = 1
    first, second = (model(row, position_ids=positions).logits[:, document:] for row in (tokens, other))
    if not torch.equal(first, second):
        raise ValueError("documents of a packed row see each other in transformers; this is no comparison")


WAYS: dict[str, Callable] = dict.fromkeys(("stock", "ours", "te", *KERNELS), megatron)
WAYS |= dict.fromkeys(("transformers", "transformers_packed", "amp"), transformers)


def measure(way: str, given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Seconds of each step that counts, the last loss and the peak of memory. Raises ValueError for a loss that no
    training on random tokens has."""
    clock, loss = WAYS[way](way, given)
    if not abs(loss / math.log(given["vocab"]) - 1) < 0.2:  # nothing can be learnt of random tokens
        raise ValueError(f"a loss of {loss} on random tokens; this is no training")
    return {"steps": clock.seconds(given["warm_up"]), "loss": loss, "peak_bytes": peak_bytes()}
