"""What a throughput is: shapes, floating-point operations, peaks of GPUs, and the table. No torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from megatron_chimed.plan import memory
from megatron_chimed.plan.layout import Layout
from megatron_chimed.plan.model import Model
from megatron_chimed.plan.speed import GPUS, TERA, flops_per_token

LLAMA_13B = Model(layers=40, hidden=5120, ffn=13824, heads=40, num_query_groups=40, head_dim=128, vocab=39424)
TINY = Model(layers=4, hidden=256, ffn=688, heads=8, num_query_groups=8, head_dim=32, vocab=2048)
SHAPES = {"13b": (LLAMA_13B, 4096), "tiny": (TINY, 512)}
"""Name to (model, tokens of a row)."""

PEAKS = {
    "H100 PCIe": 756 * TERA,
    "H100 NVL": 835 * TERA,
    "H200 NVL": 835 * TERA,
    "H100": GPUS["h100"],
    "H200": GPUS["h200"],
    "H800": GPUS["h800"],
    "A100": GPUS["a100"],
    "A800": GPUS["a800"],
    "RTX 4090": 165.2 * TERA,
    "B200": GPUS["b200"],
}
"""Words of a device's name -> peak of dense bf16 products per second with float32 sums (NVIDIA's data sheets, half of
what they state with sparsity); the first that fits counts."""

FORMULA = (
    "FLOP of a token, forward and backward: 6 x weights of matrices (the embedding is looked up) "
    "+ 6 x layers x heads x head size x tokens of a document, as causal attention sees half of them "
    "(PaLM, arXiv 2204.02311, appendix B, halved for the mask as Megatron counts). Recomputation is not counted."
)


def peak(device: str) -> float | None:
    """Peak of a device by its name, None for one that is not in the table."""
    return next((value for words, value in PEAKS.items() if words in device), None)


def layers_that_fit(model: Model, sequence: int, micro_batch: int, gpu_bytes: int) -> int:
    """The most layers of which a step on one GPU fits into its memory by the plan, at least one."""
    layout = Layout(1, 1, 1, micro_batch, micro_batch, sequence, distributed_optimizer=True, half=True)
    found = 1
    while memory.worst(dataclasses.replace(model, layers=found + 1), layout)[1].total <= gpu_bytes:
        found += 1
    return found


def throughput(model: Model, document: int, tokens: int, seconds: float, device: str) -> dict[str, float | None]:
    """Figures of a step: tokens per second, TFLOP per second, and MFU as a share of the peak where that is known.

    document: tokens of a document, within which attention stays; tokens: of the step.
    """
    work = flops_per_token(model, document) * tokens / seconds
    known = peak(device)
    return {"tokens_per_second": tokens / seconds, "tflops": work / TERA, "mfu": work / known if known else None}


def table(results: Mapping[str, Mapping[str, Any]], baseline: str = "ours") -> str:
    """A line of Markdown for each way that was measured; ratios are of TFLOP/s, as layers may differ."""
    lines = [
        "| | layers | seconds a step | tokens/s | TFLOP/s | MFU | peak memory, GiB | TFLOP/s against ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = results.get(baseline, {}).get("tflops")
    for one in results.values():
        if "error" in one:
            lines.append(f"| {one['title']} | {one['layers']} | {one['error']} | | | | | |")
            continue
        mfu = f"{one['mfu']:.1%}" if one["mfu"] else ""
        ratio = f"{one['tflops'] / ours:.2f}x" if ours else ""
        lines.append(
            f"| {one['title']} | {one['layers']} | {one['seconds']:.3f} | {one['tokens_per_second']:,.0f} | "
            f"{one['tflops']:.3g} | {mfu} | {one['peak_bytes'] / memory.GIB:.2f} | {ratio} |"
        )
    return "\n".join(lines)
