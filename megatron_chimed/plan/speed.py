"""Arithmetic of a step, and its time on a GPU at a given model FLOPs utilisation (MFU)."""

from megatron_chimed.plan.layout import Layout
from megatron_chimed.plan.model import Model

TERA = 1e12
GPUS = {
    "a100": 312 * TERA,
    "a800": 312 * TERA,
    "h100": 989 * TERA,
    "h200": 989 * TERA,
    "h800": 989 * TERA,
    "b200": 2250 * TERA,
}
"""Peak of dense bf16 products per second, SXM (NVIDIA's data sheets). For float32 weights half of it, as TF32 has."""


def flops_per_token(model: Model, sequence: int) -> int:
    """Products and sums of one token, forward and backward, without recomputation.

    6 for each weight of a matrix, 4 for one that is not trained (the embedding is none: it is looked up), and
    6 * layers * heads * head_dim * sequence for attention, as a token sees half of the row on average. Source:
    Chowdhery et al., 2022, arXiv 2204.02311, appendix B, whose 12 counts the whole row.
    """
    output = model.hidden * (model.padded_vocab(1) if model.head == "lm" else 1)
    attention = 6 * model.layers * model.heads * model.head_dim * sequence
    base = model.layers * model.layer_matrices() + output
    if model.lora is None:
        return 6 * base + attention
    return 4 * base + 6 * model.layers * sum(weight.numel for weight in model.adapters()) + attention


def step_seconds(model: Model, layout: Layout, peak: float, mfu: float) -> float:
    """Seconds of a step at an MFU that is given for this layout."""
    work = flops_per_token(model, layout.sequence) * layout.global_batch * layout.sequence
    return work / (layout.gpus * (peak if layout.half else peak / 2) * mfu)


def relative_time(model: Model, layout: Layout) -> float:
    """Time of a step against that of the same GPUs without recomputation and without waiting for a pipeline.

    The bubble is (pp - 1) of micro_batches passes (Narayanan et al., 2021, arXiv 2104.04473, section 2.2).
    Communication is not modelled.
    """
    bubble = (layout.micro_batches + layout.pp - 1) / layout.micro_batches
    return bubble * (1 + _again(model, layout))


def _again(model: Model, layout: Layout) -> float:
    """Recomputed products as a share of the step: those of layers, and of an output layer that goes by chunks."""
    chunked = layout.cross_entropy_chunk and model.head == "lm"
    output = 2 * model.hidden * model.padded_vocab(1) / flops_per_token(model, layout.sequence) if chunked else 0
    return output + _layers_again(model, layout)


def _layers_again(model: Model, layout: Layout) -> float:
    """Recomputed products of the layers as a share of the step."""
    if layout.recompute == "none":
        return 0.0
    if layout.recompute == "full":  # a second forward pass
        return 1 / 3 if model.lora is None else 1 / 2
    attention = 2 * model.layers * model.heads * model.head_dim * layout.sequence
    mlp = 2 * model.layers * 3 * model.hidden
    experts = {"moe": mlp * model.experts_per_token * model.expert_ffn}
    parts = {"core_attn": attention} | (experts if model.experts else {"mlp": mlp * model.ffn})
    again = sum(work for name, work in parts.items() if name in layout.recomputed)
    return again / flops_per_token(model, layout.sequence)
