"""A model family as data: which Hugging Face tensors make which of Megatron's, and what its settings must be."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megatron_chimed.convert.sizes import Head, Sizes


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor and the Hugging Face tensors that it is made of."""

    megatron: str
    """Megatron's name; a layer's tensors are stacked on a leading axis [layers, ...]."""

    hf: tuple[str, ...]
    """Names, with {} for the number of the layer."""

    shapes: tuple[tuple[str | int, ...], ...]
    """Of each Hugging Face tensor, by the names of `Sizes`."""

    merge_fn: Callable
    split_fn: Callable
    """Its inverse; both are of `tensors`."""

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

    def merge(self, parts: list[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        """Merge the Hugging Face tensors of one layer, of shapes `hf_shapes`, into Megatron's, of `megatron_shape`.

        All have one dtype, which stays. Query [heads * d, H], key and value [groups * d, H] make
        [(heads + 2 * groups) * d, H]; gate and up [F, H] make [2F, H].
        """
        return self.merge_fn(parts, sizes.num_query_groups)

    def split(self, tensor: torch.Tensor, sizes: Sizes) -> list[torch.Tensor]:
        """Split Megatron's tensor of one layer [rows, ...] into the Hugging Face tensors: the inverse of `merge`."""
        return self.split_fn(tensor, [shape[0] for shape in self.hf_shapes(sizes)], sizes.num_query_groups)


@dataclass(frozen=True)
class Family:
    """One kind of model: the table of its tensors, and the settings that Megatron and config.json must have."""

    name: str
    """Hugging Face's model_type."""

    architectures: dict[str, Head]
    """Hugging Face's class names, the first of each head being the one that is written."""

    fixed_hf_keys: dict[str, Any]
    """Keys of config.json with the only value that is supported; a key that is absent or null stands for it."""

    known_hf_keys: frozenset[str]
    """Further keys that this family's config.json may have beside those of every family (`hf_keys`): they change no
    result of the model."""

    fixed_args: dict[str, Any]
    """Arguments of Megatron for which config.json has no words, with the only value that it knows."""

    body: tuple[Entry, ...]
    heads: dict[Head, Entry]
    """What stands behind the body; a language model with tied embeddings has nothing there."""

    stateful: tuple[str, ...]
    """Megatron's modules of a layer that look for an extra state (FP8 scales of Transformer Engine) when they load."""

    buffers: str
    """Pattern of tensors in old checkpoints that are computed anew and hold no weights."""

    def entries(self, head: Head, tied: bool) -> tuple[Entry, ...]:
        """The table of one model."""
        return self.body if tied and head == "lm" else (*self.body, self.heads[head])

    def head_of(self, megatron_names: Iterable[str]) -> Head:
        """The head that the tensors of a Megatron checkpoint make."""
        return "reward" if self.heads["reward"].megatron in megatron_names else "lm"

    def hf_tensors(self, head: Head, tied: bool, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every Hugging Face tensor of a model."""
        for entry in self.entries(head, tied):
            for layer in range(sizes.layers) if entry.per_layer else (0,):
                yield from zip((name.format(layer) for name in entry.hf), entry.hf_shapes(sizes), strict=True)

    def count(self, head: Head, tied: bool, sizes: Sizes) -> int:
        """Count the weights of a model."""
        return sum(math.prod(shape) for _, shape in self.hf_tensors(head, tied, sizes))
