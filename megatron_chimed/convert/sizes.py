"""Sizes of a model, from which the shapes of all its weights follow, without torch."""

from dataclasses import dataclass
from typing import Literal

Head = Literal["lm", "reward"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a LLaMA-shaped model, whatever the number of ranks that hold it."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    num_query_groups: int
    """Key-value heads: as many as heads without grouped-query attention."""

    head_dim: int
    vocab: int
    """Ids: rows of the Hugging Face embedding, not padded for tensor parallelism."""

    experts: int = 0
    """Of each layer; without them, 0, a layer has one MLP."""

    expert_ffn: int = 0
    """`ffn` of an expert."""

    @property
    def q_dim(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.num_query_groups * self.head_dim

    def problems(self, tp: int, shared_groups: bool = False) -> list[str]:
        """List what `tp` tensor-parallel ranks cannot share out evenly, each with what to do; empty if they can.

        shared_groups: a query group may belong to several whole ranks, as Megatron's training allows. The vocabulary is
        no problem of any `tp`: it is padded to a multiple (see `pad_vocab`).
        """
        found = []
        for name, size in (
            ("num-attention-heads", self.heads),
            ("num-query-groups", self.num_query_groups),
            ("moe-ffn-hidden-size", self.expert_ffn) if self.experts else ("ffn-hidden-size", self.ffn),
        ):
            shared = shared_groups and name == "num-query-groups" and tp % size == 0
            if size % tp and not shared:
                found.append(f"--{name} {size} is no multiple of TP ({tp}); take a TP that divides it")
        return found


def pad_vocab(vocab: int, tp: int, multiple: int = 128) -> int:
    """Round a number of ids up to the rows of an embedding that `tp` ranks share out, as Megatron does.

    multiple: Megatron's --make-vocab-size-divisible-by.
    """
    return -(-vocab // (multiple * tp)) * multiple * tp
