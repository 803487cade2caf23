"""Which layouts fit, the fastest first, and what to change in one that does not."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_chimed.plan.layout import Layout, problems
from megatron_chimed.plan.memory import Memory, worst
from megatron_chimed.plan.model import Model
from megatron_chimed.plan.speed import relative_time

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Ranks of a machine: tensor parallelism beyond it goes over the network."""


@dataclass(frozen=True)
class Choice:
    """A layout with its memory and its time."""

    layout: Layout
    memory: Memory
    """Of the GPU that needs most."""

    time: float
    """See `speed.relative_time`."""


def choices(model: Model, layout: Layout, limit: int) -> list[Choice]:
    """All layouts of the same batch on the same GPUs within `limit` bytes: the fastest first; of equal ones the one
    with less tensor, then pipeline, then expert parallelism, whose communication is not modelled."""
    found = []
    for one in _layouts(model, layout):
        memory = worst(model, one)[1]
        if memory.total <= limit:
            found.append(Choice(one, memory, relative_time(model, one)))
    return sorted(found, key=lambda one: (round(one.time, 2), *_communication(one.layout), one.memory.total))


def _communication(layout: Layout) -> tuple[int, int, int]:
    """What costs communication, the dearest first."""
    return layout.tp, layout.pp, layout.ep


def _layouts(model: Model, layout: Layout) -> Iterator[Layout]:
    """Layouts that can be divided, powers of two within a machine for TP, any PP, every recomputation."""
    for tp in TENSOR_PARALLEL:
        for pp in (pp for pp in range(1, model.layers + 1) if not model.layers % pp):
            for ep, recompute in itertools.product(_expert_parallel(model), ("none", "selective", "full")):
                one = replace(layout, tp=tp, pp=pp, ep=ep, recompute=recompute, sequence_parallel=tp > 1)
                if not problems(model, one):
                    yield one


def _expert_parallel(model: Model) -> list[int]:
    """Powers of two that share the experts out; 1 without experts."""
    return [2**power for power in range(max(1, model.experts.bit_length())) if not model.experts % 2**power] or [1]


def advice(model: Model, layout: Layout, limit: int) -> list[str]:
    """Single changes that make the layout fit, each as Megatron's arguments with the memory that it leads to; if none
    does, a line that says so."""
    mlp = "moe" if model.experts else "mlp"
    candidates = [
        ("--use-distributed-optimizer", replace(layout, distributed_optimizer=True)),
        ("--sequence-parallel", replace(layout, sequence_parallel=layout.tp > 1)),
        ("--micro-batch-size 1", replace(layout, micro_batch=1)),
        ("cross_entropy_chunk_tokens 1024", replace(layout, cross_entropy_chunk=1024)),
        (f"--recompute-granularity selective --recompute-modules {mlp}", replace(layout, **_selective(mlp))),
        ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1", _full(layout)),
    ]
    for tp in TENSOR_PARALLEL[1:]:
        wider = replace(layout, tp=tp, sequence_parallel=True)
        candidates.append((f"--tensor-model-parallel-size {tp} --sequence-parallel", wider))
    candidates += [(f"--pipeline-model-parallel-size {pp}", replace(layout, pp=pp)) for pp in (2, 4, 8)]
    candidates += [(f"--expert-model-parallel-size {ep}", replace(layout, ep=ep)) for ep in _expert_parallel(model)]
    gpus = ((f"{layout.gpus * n} GPUs", replace(layout, gpus=layout.gpus * n)) for n in (2, 4, 8, 16, 32, 64))
    lines = []
    for words, one in [*candidates, *gpus]:
        narrower = one.tp < layout.tp or one.pp < layout.pp or one.ep < layout.ep
        if one == layout or narrower or problems(model, one):
            continue
        need = worst(model, one)[1].total
        if need <= limit:
            lines.append(f"{words}: {need / (1 << 30):.1f} GiB")
            if "GPUs" in words:
                break
    return lines or ["no single change is enough: take more GPUs, or GPUs with more memory"]


def _selective(module: str) -> dict:
    """Recomputation of one module alone."""
    return {"recompute": "selective", "recomputed": (module,)}


def _full(layout: Layout) -> Layout:
    """With every layer recomputed."""
    return replace(layout, recompute="full")
