"""Short dialogues as packed rows and as padded batches: real tokens per second, forward and backward pass, one rank."""

import math
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_way import peak_bytes
from training import take_device

from megatron_chimed.packing.bin_packing import pack

BATCH = 16
"""Dialogues of a padded batch, the paper's."""


def draw_lengths(rows: int, sequence: int) -> list[int]:
    """Tokens of dialogues that fill so many rows but for a fiftieth: half are shorter than a twenty-fourth of a row."""
    draw, lengths = random.Random(0), []
    while sum(lengths) < rows * sequence * 0.98:
        lengths.append(min(sequence, max(8, round(draw.lognormvariate(math.log(sequence / 24), 0.8)))))
    return lengths


def draw_samples(lengths: list[int], vocab: int) -> list[dict[str, torch.Tensor]]:
    """Dialogues of random tokens, as rows are read: all but the last token is learnt."""
    draw, samples = torch.Generator().manual_seed(0), []
    for length in lengths:
        tokens = torch.randint(vocab, (length,), generator=draw)
        mask = torch.ones(length)
        mask[-1] = 0
        samples.append(
            {"tokens": tokens, "labels": tokens.roll(-1), "loss_mask": mask, "position_ids": torch.arange(length),
             "source": torch.zeros(length, dtype=torch.long)}
        )  # fmt: skip
    return samples


def as_packed(samples: list[dict[str, torch.Tensor]], sequence: int) -> list[dict[str, torch.Tensor]]:
    """Rows [1, S] by the project's own packing; what is left of a row is one more document, which is not learnt."""
    packing = pack(np.array([len(sample["tokens"]) for sample in samples]), sequence, seed=0)
    rows = []
    for first, last in zip(packing.row_offsets, packing.row_offsets[1:], strict=False):
        chosen = [samples[number] for number in packing.order[first:last]]
        left = sequence - sum(len(sample["tokens"]) for sample in chosen)
        nothing = torch.zeros(left, dtype=torch.long)
        padding = dict.fromkeys(("tokens", "labels"), nothing) | {"loss_mask": torch.zeros(left), "source": nothing - 1}
        padding["position_ids"] = torch.arange(left)
        rows.append({name: torch.cat([one[name] for one in [*chosen, padding]])[None] for name in padding})
    return rows


def make_model(given: dict[str, Any]) -> torch.nn.Module:
    """Of the shape, in its dtype, without an optimizer."""
    from megatron_chimed.convert import architecture
    from megatron_chimed.convert.model import build_model

    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": given["hidden"], "intermediate_size": given["ffn"],
        "num_hidden_layers": given["layers"], "num_attention_heads": given["heads"], "vocab_size": given["vocab"],
        "max_position_embeddings": given["sequence"],
    }  # fmt: skip
    model = build_model(architecture.from_hf(config, "shape"), getattr(torch, given["dtype"]), gather_logits=False)
    model, draw = model.cuda(), torch.manual_seed(0)
    for parameter in model.parameters():
        on_device = None if parameter.is_cuda else draw
        parameter.data.normal_(0, 0.02, generator=on_device) if parameter.dim() > 1 else parameter.data.fill_(1)
    return model.train()


def measure(way: str, given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Of both ways the seconds of a pass, the median of some, real tokens per second and positions. Raises ValueError
    when their losses differ."""
    backend = take_device()
    from sft_step import as_padded, packed_step, padded_step

    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    model = make_model(given)
    samples = draw_samples(draw_lengths(given["rows"], given["sequence"]), given["vocab"])
    shuffled = random.Random(0).sample(samples, len(samples))
    batches = {
        "packed": as_packed(samples, given["sequence"]),
        "padded": [as_padded(shuffled[i : i + BATCH]) for i in range(0, len(samples), BATCH)],
    }
    steps, seconds, losses = {"packed": packed_step, "padded": padded_step}, {"packed": [], "padded": []}, {}
    for number in range(given["passes"] + 1):  # the first warms up
        for name, step in steps.items():
            model.zero_grad()
            start = time.perf_counter()
            losses[name] = sum(step(model, batch) for batch in batches[name])  # numbers: all is done by then
            seconds[name] += [time.perf_counter() - start] if number else []
    if not math.isclose(*losses.values(), rel_tol=1e-5 if given["dtype"] == "float32" else 1e-2):
        raise ValueError(f"packed and padded differ in their summed losses: {losses}; this is no comparison")
    real = sum(len(sample["tokens"]) for sample in samples)
    found: dict[str, Any] = {"real_tokens": real, "dialogues": len(samples), "peak_bytes": peak_bytes()}
    for name, each in seconds.items():
        median = statistics.median(each)
        positions = sum(batch["tokens"].numel() for batch in batches[name])
        found[name] = {"seconds": median, "tokens_per_second": real / median, "positions": positions}
    return found
