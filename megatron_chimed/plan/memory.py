"""Memory of one GPU by part.

Weights, gradients and optimizer are exact: they follow the layout of Megatron's gradient buffers and of the distributed
optimizer (megatron-core 0.19, `optimizer/distrib_optimizer.py`, `_compute_per_buffer_param_layout`), padding included.
Activations, logits and buffers are an estimate: they count what each operation keeps for its backward pass (Korthikanti
et al., 2022, arXiv 2205.05198, section 4), not what an allocator makes of it. What a layer keeps is tested against the
tensors that torch keeps of one.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from megatron_chimed.plan.layout import Layout
from megatron_chimed.plan.model import Model, Weight

GIB = 1 << 30
RUNTIME = 2 * GIB
"""Assumed for the CUDA context, NCCL and libraries: ours, not measured."""

ALIGNMENT, END_ALIGNMENT = 64, 128
"""Elements to which Megatron aligns a weight in a buffer, and (with the number of ranks) the end of a bucket."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Held:
    """Elements that one rank holds of weights of one type."""

    buffer: int
    """In the gradient buffer, padding included."""

    shard: int
    """In the optimizer of the first data-parallel rank, which has the largest part."""


def per_gpu(model: Model, layout: Layout, stage: int) -> Memory:
    """Of a GPU of pipeline stage `stage`."""
    weights, gradients, optimizer = states(model, layout, stage)
    return Memory(
        weights,
        gradients,
        optimizer,
        activations(model, layout, stage),
        logits(model, layout) if stage == layout.pp - 1 else 0,
        buffers(model, layout),
    )


def worst(model: Model, layout: Layout) -> tuple[int, Memory]:
    """(The pipeline stage that needs most, its memory). Stages between the ends need less than the first one."""
    stages = {0, layout.pp - 1}
    return max(((stage, per_gpu(model, layout, stage)) for stage in sorted(stages)), key=lambda one: one[1].total)


def states(model: Model, layout: Layout, stage: int) -> tuple[int, int, int]:
    """Bytes of (weights, gradients, optimizer). Scalars, such as Adam's step, are not counted."""
    weights = model.weights(layout.tp, layout.pp, stage, layout.ep, layout.etp)
    total = [sum((2 if layout.half else 4) * weight.numel for weight in weights if weight.frozen), 0, 0]
    weights = [weight for weight in weights if not weight.frozen]
    for half, expert in itertools.product((True, False), repeat=2):
        group = [w for w in weights if (layout.half and not w.float32) is half and w.expert is expert]
        if not group:
            continue
        size = 2 if half else 4
        held = _held(group, layout, stage, layout.expert_dp if expert else layout.dp)
        # The distributed optimizer moves the weights into a buffer of the gradients' shape.
        numel = held.buffer if layout.distributed_optimizer else sum(weight.numel for weight in group)
        total[0] += size * numel
        total[1] += (2 if half and layout.half_gradients else 4) * held.buffer
        total[2] += (12 if half else 8) * held.shard  # two moments; of 16 bits also a float32 copy
    return tuple(total)


def _held(weights: Sequence[Weight], layout: Layout, stage: int, ranks: int) -> Held:
    """Elements of the buffer and of the optimizer for weights of one type, which so many ranks have alike."""
    if not layout.distributed_optimizer:
        numel = sum(weight.numel for weight in weights)
        return Held(numel, numel)
    buffer = shard = 0
    for start, end, spans in _buckets(weights, layout, stage, ranks):
        buffer = end
        mine = start + (end - start) // ranks
        shard += sum(max(0, min(stop, mine) - begin) for begin, stop in spans)
    return Held(buffer, shard)


def _buckets(weights: Sequence[Weight], layout: Layout, stage: int, ranks: int) -> Iterator[tuple[int, int, list]]:
    """(start, end, [start and end of each weight]) of each bucket of a buffer: from the last weight to the first."""
    limit = max(40_000_000, 1_000_000 * layout.dp) if layout.overlap and stage == 0 else math.inf
    divisor = math.lcm(ranks, END_ALIGNMENT)
    start = position = 0
    spans: list[tuple[int, int]] = []
    for weight in reversed(weights):
        position = _up(position, ALIGNMENT)
        if weight.shared and spans:
            yield start, _up(position, divisor), spans
            start = position = _up(position, divisor)
            spans = []
        spans.append((position, position + weight.numel))
        position += weight.numel
        if weight.shared or position - start >= limit:
            yield start, _up(position, divisor), spans
            start = position = _up(position, divisor)
            spans = []
    if spans:
        yield start, _up(position, divisor), spans


def _up(value: int, multiple: int) -> int:
    """The next multiple of a number."""
    return -(-value // multiple) * multiple


def activations(model: Model, layout: Layout, stage: int) -> int:
    """What the layers of a pipeline stage keep for the backward passes that are still to come.

    1F1B keeps pp - stage micro batches at a time (Narayanan et al., 2021, arXiv 2104.04473, section 2.2).
    """
    in_flight = min(layout.pp - stage, layout.micro_batches)
    tokens = layout.sequence * layout.micro_batch
    size = 2 if layout.half else 4
    whole = layout.tp if layout.sequence_parallel else 1
    # Inputs of the last norm and of the output layer.
    ends = model.hidden * size * tokens * 2 // whole if stage == layout.pp - 1 else 0
    kept = layer_kept(model, layout)
    working = layer_kept(model, layout, all_of_it=True) if layout.recompute == "full" else 0
    return in_flight * model.layers // layout.pp * kept + ends + working


def adapters_kept(model: Model, layout: Layout) -> int:
    """Bytes that the adapters of a layer keep of a token beside `linears_kept`: A x, and with dropout what it has made
    of x, and its mask."""
    if model.lora is None:
        return 0
    size, kept = (2 if layout.half else 4), 0
    whole = layout.tp if layout.sequence_parallel else 1
    for name, _, columns in model.targets():
        row = name in ("o_proj", "down_proj")
        kept += size * model.lora.rank // (whole if row else 1)
        if model.lora.dropout:
            kept += (size + 1) * columns // (layout.tp if row else whole)
    return kept


def layer_kept(model: Model, layout: Layout, all_of_it: bool = False) -> int:
    """Bytes that one layer keeps of one micro batch (no scores: attention is computed in blocks; no dropout; norms and
    SwiGLU fused, as on a GPU).

    all_of_it: without recomputation.
    """
    size = 2 if layout.half else 4
    tokens = layout.sequence * layout.micro_batch
    recompute = "none" if all_of_it else layout.recompute
    whole = layout.tp if layout.sequence_parallel else 1
    if recompute == "full":
        return tokens * size * model.hidden // whole
    # After the rotary embedding; before it, because the values are a view into all of it; and the result.
    attention = model.q_dim + model.kv_dim + (model.q_dim + 2 * model.kv_dim) + model.q_dim
    log_sum_exp = 4 * model.heads
    scales = 0
    if model.family.fixed_args["qk_layernorm"]:
        scales = 4 * (model.heads + model.num_query_groups)
        # What they normalise: keys are a view too, and queries where each has a key of its own.
        attention += model.q_dim if model.heads > model.num_query_groups else 0
    normed, product = linears_kept(model, layout)
    mlp, routed = 2 * model.ffn + product, 0  # gate and up, and their product
    if model.experts:
        mlp, routed = 0, _routed(model, layout, size) if recompute == "none" or "moe" not in layout.recomputed else 0
    if recompute == "selective":
        mlp = 0 if "mlp" in layout.recomputed else mlp
        log_sum_exp = 0 if "core_attn" in layout.recomputed else log_sum_exp
    inputs = (2 * model.hidden + normed) * size + 2 * 4  # of two norms, with scales, and of the linears behind them
    rotary = 4 * size * model.head_dim * layout.sequence  # sine and cosine, for queries and for keys
    kept = inputs // whole + (size * (attention + mlp) + log_sum_exp + scales) // layout.tp + routed
    kept += adapters_kept(model, layout)
    return tokens * kept + rotary


def linears_kept(model: Model, layout: Layout) -> tuple[int, int]:
    """(elements of norms' results, of the product of gate and up) that a token's linears keep: what a weight is trained
    by. A frozen one keeps nothing, nor does an adapter of what its dropout replaces."""
    if model.lora is None:
        return 2 * model.hidden, model.ffn
    targets = set() if model.lora.dropout else {name for name, _, _ in model.targets()}
    read = bool(targets & {"q_proj", "k_proj", "v_proj"}) + bool(targets & {"gate_proj", "up_proj"})
    return read * model.hidden, model.ffn if "down_proj" in targets else 0


def _routed(model: Model, layout: Layout, size: int) -> int:
    """Bytes that a router and the experts of a rank keep for a token, as if all experts got as many tokens.

    A token is copied for each of its experts, with its place and its score; it has a score and a mark of each expert,
    and those that it was sent to on the rank that has this part of the sequence.
    """
    etp = layout.etp or layout.tp
    copies = model.experts_per_token * (model.hidden * size + 8 + size + size * 3 * model.expert_ffn // etp)
    chosen = 12 * model.experts_per_token // (layout.tp if layout.sequence_parallel else 1)
    return copies * etp // layout.tp + (size + 1) * model.experts + chosen


def logits(model: Model, layout: Layout) -> int:
    """The output layer's logits, their float32 copy, and the softmax that the loss keeps: of all tokens or of a chunk.

    In 16 bits the chunks' gradients of the output weight are summed in float32, unless weight gradients are fused,
    which the plan does not know.
    """
    tokens = layout.sequence * layout.micro_batch
    if model.head == "reward":
        return 4 * tokens * (model.hidden + 1)
    ids = model.padded_vocab(layout.tp) // layout.tp
    at_once = min(tokens, layout.cross_entropy_chunk or tokens)
    summed = 4 * ids * model.hidden if layout.cross_entropy_chunk and layout.half and model.lora is None else 0
    return at_once * ids * ((2 if layout.half else 4) + 4 + 4) + summed


def buffers(model: Model, layout: Layout) -> int:
    """One gathered input of a layer where the sequence is split, its gradient, and RUNTIME."""
    gathered = 2 * layout.sequence * layout.micro_batch * model.hidden * (2 if layout.half else 4)
    return RUNTIME + (gathered if layout.sequence_parallel and layout.tp > 1 else 0)
