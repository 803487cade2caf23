"""Weights of a model, rank by rank, by arithmetic on its family's table: the same list that the built model has."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_chimed.convert.families import LLAMA
from megatron_chimed.convert.family import LAYER, Entry, Family
from megatron_chimed.convert.sizes import Head, Sizes, pad_vocab

ORDER = (
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
"""Parameters of Megatron's layer by the beginnings of their names, as they come in its module."""


@dataclass(frozen=True)
class Weight:
    """One parameter tensor of a rank."""

    numel: int
    float32: bool = False
    """float32 whatever the model is in: the reward head."""

    shared: bool = False
    """An embedding that two pipeline stages hold; it has a bucket of its own among the gradients."""


@dataclass(frozen=True)
class Model(Sizes):
    """Sizes of a model, with what its list of weights depends on besides."""

    vocab_multiple: int = 128
    """--make-vocab-size-divisible-by."""

    tied: bool = False
    head: Head = "lm"
    family: Family = LLAMA

    def padded_vocab(self, tp: int) -> int:
        """Rows of the embedding: the vocabulary rounded up to vocab_multiple * tp, as Megatron does."""
        return pad_vocab(self.vocab, tp, self.vocab_multiple)

    def layer_entries(self) -> list[Entry]:
        """The weights of one layer, in the order of the module's parameters."""

        def place(entry: Entry) -> int:
            name = entry.megatron.removeprefix(LAYER)
            return next(number for number, start in enumerate(ORDER) if name.startswith(start))

        return sorted((entry for entry in self.family.body if entry.per_layer), key=place)

    def layer(self, tp: int) -> list[int]:
        """Elements of each weight of one layer on one of `tp` ranks."""
        return [
            math.prod(entry.megatron_shape(self)) // (1 if entry.split_axis is None else tp)
            for entry in self.layer_entries()
        ]

    def layer_matrices(self) -> int:
        """Elements of the matrices of one layer, which are multiplied with every token."""
        shapes = (entry.megatron_shape(self) for entry in self.layer_entries())
        return sum(math.prod(shape) for shape in shapes if len(shape) > 1)

    def weights(self, tp: int = 1, pp: int = 1, stage: int = 0) -> list[Weight]:
        """All weights of a rank of pipeline stage `stage`, in the order of the module's parameters."""
        return list(self._weights(tp, pp, stage))

    def _weights(self, tp: int, pp: int, stage: int) -> Iterator[Weight]:
        first, last = stage == 0, stage == pp - 1
        tied = self.tied and self.head == "lm"
        embedding = Weight(self.padded_vocab(tp) // tp * self.hidden, shared=tied and pp > 1)
        if first:
            yield embedding
        for _ in range(self.layers // pp):
            yield from map(Weight, self.layer(tp))
        if last:
            yield Weight(self.hidden)
            if self.head == "reward":
                yield Weight(self.hidden, float32=True)
            elif not (tied and first):
                yield embedding

    def parameters(self, tp: int = 1, pp: int = 1, stage: int = 0) -> int:
        """Parameters of one rank."""
        return sum(weight.numel for weight in self.weights(tp, pp, stage))
