"""A plan as text."""

from collections.abc import Iterator
from dataclasses import replace

from megatron_chimed.errors import InputError
from megatron_chimed.plan import choices, memory, speed
from megatron_chimed.plan.layout import Layout, problems
from megatron_chimed.plan.memory import GIB
from megatron_chimed.plan.model import Model
from megatron_chimed.plan.settings import Plan

EXACT = ("weights", "gradients", "optimizer")
SHOWN = 8


def report(plan: Plan, gpu_memory: float, gpu: str, mfu: float) -> tuple[str, bool]:
    """(The text, whether the layout fits). gpu_memory: GiB of a GPU; gpu: a name in `speed.GPUS`; mfu: 0 to 1.

    Raises InputError when sizes do not divide.
    """
    if found := problems(plan.model, plan.layout):
        raise InputError("; ".join(found))
    limit = int(gpu_memory * GIB)
    fits = memory.worst(plan.model, plan.layout)[1].total <= limit
    lines = [*_head(plan), "", *_memory(plan, limit), "", *_time(plan, gpu, mfu), "", *_ranking(plan, limit)]
    return "\n".join(lines), fits


def _head(plan: Plan) -> Iterator[str]:
    """Model and layout."""
    layout, model = plan.layout, plan.model
    total = f"{model.parameters():,} parameters"
    if model.lora is not None:
        total += f", of which adapters of rank {model.lora.rank} are trained, {trained(model):,}"
    if model.experts:
        total += f", of which a token passes {model.active():,}"
    yield f"stage {plan.stage}: {total} (vocabulary padded to {model.padded_vocab(1):,} at TP 1)"
    yield f"{layout.gpus} GPUs: {_name(layout)}; {layout.micro_batches} micro batches of {layout.micro_batch} to a step"


def trained(model: Model) -> int:
    """Weights that are trained: the adapters and a reward model's head."""
    return sum(weight.numel for weight in model.weights() if not weight.frozen)


def _name(layout: Layout) -> str:
    """TP, PP, DP and recomputation of a layout."""
    recompute = layout.recompute
    if recompute == "selective":
        recompute += f" ({', '.join(layout.recomputed)})"
    experts = f" (EP {layout.ep} x TP {layout.etp or layout.tp} for experts)" if layout.ep > 1 or layout.etp else ""
    return f"TP {layout.tp} x PP {layout.pp} x DP {layout.dp}{experts}, recompute {recompute}"


def _memory(plan: Plan, limit: int) -> Iterator[str]:
    """The parts of the memory of the GPU that needs most, whether they fit, and advice."""
    layout, model = plan.layout, plan.model
    stage, parts = memory.worst(model, layout)
    where = f" (pipeline stage {stage} of {layout.pp}, which needs most)" if layout.pp > 1 else ""
    yield f"memory of a GPU{where}"
    yield f"  {model.parameters(layout.tp, layout.pp, stage, layout.ep, layout.etp):,} parameters"
    for name in (*EXACT, "activations", "logits", "buffers"):
        value = getattr(parts, name)
        kind = f"{value:,} bytes" if name in EXACT else "estimate"
        if name == "logits" and layout.cross_entropy_chunk and model.head == "lm":
            kind += f", of {layout.cross_entropy_chunk:,} tokens at a time"
        yield f"  {name:<12} {value / GIB:8.2f} GiB   {kind}"
    fits = parts.total <= limit
    verdict = "fits" if fits else f"does NOT fit: {(parts.total - limit) / GIB:.1f} GiB too much"
    yield f"  {'total':<12} {parts.total / GIB:8.2f} GiB   of {limit / GIB:.0f}: {verdict}"
    yield "  Activations, logits and buffers are counted, not measured; leave a tenth of the memory free."
    if layout.recompute == "selective" and layout.recomputed == ("core_attn",):
        saved = memory.layer_kept(model, replace(layout, recompute="none")) - memory.layer_kept(model, layout)
        yield (
            f"  Attention in blocks keeps no scores: recomputing it saves {saved / (1 << 20):.1f} MiB a layer, "
            "and costs its second pass."
        )
    if not fits:
        yield "what would fit:"
        yield from (f"  {line}" for line in choices.advice(model, layout, limit))


def _time(plan: Plan, gpu: str, mfu: float) -> Iterator[str]:
    """Tokens, steps and time."""
    layout = plan.layout
    tokens = layout.global_batch * layout.sequence
    seconds = speed.step_seconds(plan.model, layout, speed.GPUS[gpu], mfu)
    yield f"time at {mfu:.0%} MFU on {gpu} (assumed, not measured)"
    yield f"  {tokens:,} tokens a step, {seconds:.2f} s, {tokens / seconds / layout.gpus:,.0f} tokens/s of a GPU"
    if plan.steps is None:
        yield f"  steps unknown: {plan.why_no_steps}"
        return
    hours = plan.steps * seconds / 3600
    yield f"  {plan.steps:,} steps, {plan.steps * tokens:,} tokens"
    yield f"  {hours:,.1f} hours, {hours * layout.gpus:,.0f} GPU hours; evaluations and saving come on top"


def _ranking(plan: Plan, limit: int) -> Iterator[str]:
    """The layouts that fit, the fastest first."""
    found = choices.choices(plan.model, plan.layout, limit)
    yield (
        f"{len(found)} layouts of this batch fit {plan.layout.gpus} GPUs (time: 1 is without recomputation and without "
        "waiting for a pipeline; communication is not modelled, and of equal times the smaller TP and PP come first)"
    )
    for choice in found[:SHOWN]:
        yield f"  time {choice.time:.2f}  {choice.memory.total / GIB:6.1f} GiB  {_name(choice.layout)}"
    if len(found) > SHOWN:
        yield f"  and {len(found) - SHOWN} more"
