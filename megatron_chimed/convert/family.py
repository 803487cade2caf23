"""A model family as data: the sizes of a model, and which Hugging Face tensors make which of Megatron's."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Head = Literal["lm", "reward"]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of all weights follow from."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    """Key-value heads: as many as heads without grouped-query attention."""

    head_dim: int
    vocab: int
    """Rows of the Hugging Face embedding, not padded for tensor parallelism."""

    @property
    def queries(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.groups * self.head_dim


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor and the Hugging Face tensors that it is made of."""

    megatron: str
    """Megatron's name; a layer's tensors are stacked on a leading axis [layers, ...]."""

    hf: tuple[str, ...]
    """Names, with {} for the number of the layer."""

    shapes: tuple[tuple[str | int, ...], ...]
    """Of each Hugging Face tensor, by the names of `Sizes`."""

    join: Callable
    split: Callable

    @property
    def per_layer(self) -> bool:
        """Whether every layer has its own."""
        return "{}" in self.hf[0]

    @property
    def has_vocabulary(self) -> bool:
        """Whether the rows are the vocabulary, which Megatron pads."""
        return self.shapes[0][0] == "vocab"

    def hf_shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        """The shapes of the Hugging Face tensors."""
        return [tuple(getattr(sizes, d) if isinstance(d, str) else d for d in shape) for shape in self.shapes]

    def megatron_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape of one layer's Megatron tensor: the parts share all but their rows."""
        shapes = self.hf_shapes(sizes)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def joined(self, parts: list[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        """Megatron's tensor of one layer."""
        return self.join(parts, sizes.groups)

    def parted(self, tensor: torch.Tensor, sizes: Sizes) -> list[torch.Tensor]:
        """The Hugging Face tensors of one layer."""
        return self.split(tensor, [shape[0] for shape in self.hf_shapes(sizes)], sizes.groups)


@dataclass(frozen=True)
class Family:
    """A table for one kind of model."""

    name: str
    """Hugging Face's model_type."""

    architectures: dict[str, Head]
    """Hugging Face's class names, the first of each head being the one that is written."""

    trunk: tuple[Entry, ...]
    heads: dict[Head, Entry]
    """What stands behind the trunk; a language model with tied embeddings has nothing there."""

    stateful: tuple[str, ...]
    """Megatron's modules of a layer that look for an extra state (FP8 scales of Transformer Engine) when they load."""

    buffers: str
    """Pattern of tensors in old checkpoints that are computed anew and hold no weights."""

    def entries(self, head: Head, tied: bool) -> tuple[Entry, ...]:
        """The table of one model."""
        return self.trunk if tied and head == "lm" else (*self.trunk, self.heads[head])

    def hf_tensors(self, head: Head, tied: bool, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every Hugging Face tensor of a model."""
        for entry in self.entries(head, tied):
            for layer in range(sizes.layers) if entry.per_layer else (0,):
                yield from zip((name.format(layer) for name in entry.hf), entry.hf_shapes(sizes), strict=True)

    def count(self, head: Head, tied: bool, sizes: Sizes) -> int:
        """Number of weights of a model."""
        return sum(math.prod(shape) for _, shape in self.hf_tensors(head, tied, sizes))
