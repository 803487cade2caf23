"""How a training is spread over GPUs, and which spreads cannot be."""

from dataclasses import dataclass
from typing import Literal

from megatron_chimed.plan.model import Model

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel groups, of the batch, and what memory depends on."""

    gpus: int
    tp: int
    pp: int
    micro_batch: int
    """Rows that a rank takes at a time."""

    global_batch: int
    """Rows of a step."""

    sequence: int
    """Tokens of a row."""

    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    half: bool = False
    """Weights in 16 bits, with a float32 copy in the optimizer."""

    half_gradients: bool = False
    """Gradients summed in 16 bits."""

    overlap: bool = False
    """Gradients are reduced in buckets, during the backward pass."""

    recompute: Recompute = "none"
    recomputed: tuple[str, ...] = ("core_attn",)
    """For "selective": modules that are computed twice."""

    cross_entropy_chunk: int = 0
    """Tokens whose logits are held at a time; 0: those of all."""

    ep: int = 1
    """Ranks that share the experts out; they are data-parallel ranks to everything else."""

    etp: int | None = None
    """Ranks that share an expert out; `tp` by default."""

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return max(1, self.gpus // (self.tp * self.pp))

    @property
    def expert_dp(self) -> int:
        """Ranks that hold the same part of the same experts."""
        return max(1, self.gpus // ((self.etp or self.tp) * self.ep * self.pp))

    @property
    def micro_batches(self) -> int:
        """Forward passes of a rank in one step."""
        return max(1, self.global_batch // (self.micro_batch * self.dp))


def problems(model: Model, layout: Layout) -> list[str]:
    """What cannot be divided as the layout asks, each with what to do; none if all can."""
    tp, pp, found = layout.tp, layout.pp, []

    def divides(name: str, size: int, what: str, by: int, advice: str) -> None:
        if size % by:
            found.append(f"{name} {size} is no multiple of {what} ({by}); {advice}")

    divides("--world-size", layout.gpus, "TP x PP", tp * pp, "take another number of GPUs, or another TP or PP")
    found += model.problems(tp, shared_groups=True, etp=layout.etp)
    if model.experts:
        ranks = (layout.etp or tp) * layout.ep * pp
        divides("--world-size", layout.gpus, "TP of experts x EP x PP", ranks, "take another number of GPUs, or EP")
        divides("--num-experts", model.experts, "EP", layout.ep, "take an EP that divides it")
        if tp > 1 and not layout.sequence_parallel:
            found.append("--num-experts with TP above 1 needs --sequence-parallel")
    elif layout.ep > 1:
        found.append(f"--expert-model-parallel-size {layout.ep}: the model has no experts; leave it out")
    divides("--num-layers", model.layers, "PP", pp, "take a PP that divides it")
    if layout.sequence_parallel:
        divides("--seq-length", layout.sequence, "TP", tp, "sequence parallelism needs a multiple")
    if not layout.gpus % (tp * pp):
        batch = layout.micro_batch * layout.dp
        most = layout.global_batch // layout.micro_batch * tp * pp
        divides(
            "--global-batch-size",
            layout.global_batch,
            f"micro batch {layout.micro_batch} x DP {layout.dp}",
            batch,
            f"take a multiple of {batch}, or at most {most} GPUs" if most else "take a larger batch",
        )
    return found
