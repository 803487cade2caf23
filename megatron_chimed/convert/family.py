"""A model family as data: which Hugging Face tensors make which of Megatron's, and what its settings must be.

No torch here: the plan reads these tables too. What is done to the tensors of an entry stands in `tensors`.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_chimed.convert.sizes import Head, Sizes
from megatron_chimed.errors import short

LAYER = "decoder.layers."

SOME = "some"
"""In the place of a fixed argument: any but None, which is what other families have."""


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor and the Hugging Face tensors that it is made of."""

    megatron: str
    """Megatron's name; a layer's tensors are stacked on a leading axis [layers, ...], an expert's on two
    [layers, experts, ...]."""

    hf: tuple[str, ...]
    """Names, with {layer} for the number of the layer and {expert} for that of the expert."""

    shapes: tuple[tuple[str | int, ...], ...]
    """Of each Hugging Face tensor, by the names of `Sizes`."""

    merge: Literal["one", "rows", "qkv"] = "one"
    """How they become Megatron's: as it is, one below the other, or interleaved by query group (`tensors.MERGES`)."""

    split_axis: int | None = None
    """Axis of Megatron's tensor that tensor-parallel ranks share out; None where each has all of it."""

    @property
    def per_layer(self) -> bool:
        """Whether every layer has its own."""
        return "{layer}" in self.hf[0]

    @property
    def per_expert(self) -> bool:
        """Whether every expert of every layer has its own."""
        return "{expert}" in self.hf[0]

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

    def stack(self, sizes: Sizes) -> tuple[int, ...]:
        """The leading axes of Megatron's tensor: (), (layers,) or (layers, experts)."""
        return (sizes.layers,) * self.per_layer + (sizes.experts,) * self.per_expert

    def places(self, sizes: Sizes) -> Iterator[tuple[int, ...]]:
        """The places on them in their order: (), (layer,) or (layer, expert)."""
        return itertools.product(*map(range, self.stack(sizes)))

    def hf_names(self, place: tuple[int, ...]) -> list[str]:
        """The names of the Hugging Face tensors of a place."""
        numbers = dict(zip(("layer", "expert"), place, strict=False))
        return [name.format(**numbers) for name in self.hf]


@dataclass(frozen=True)
class Family:
    """One kind of model: the table of its tensors, and the settings that Megatron and config.json must have."""

    name: str
    """Hugging Face's model_type."""

    title: str
    """The name for people."""

    architectures: dict[str, Head]
    """Hugging Face's class names, the first of each head being the one that is written."""

    body: tuple[Entry, ...]
    heads: dict[Head, Entry]
    """What stands behind the body; a language model with tied embeddings has nothing there."""

    fixed_args: dict[str, Any]
    """Arguments of Megatron that config.json has no words for, with the only value that this family has."""

    fixed_hf_keys: dict[str, Any]
    """Keys of config.json with the only value that is supported; a key that is null stands for it, and one that is
    absent unless `hf_defaults` has it. A list stands for lists of any length with these elements alone."""

    known_hf_keys: frozenset[str] = frozenset()
    """Further keys that this family's config.json may have beside those of every family (`hf_keys`): they change no
    result of the model."""

    hf_defaults: dict[str, Any] = field(default_factory=dict)
    """What transformers' class takes for keys that are absent, where that is not what LLaMA's takes."""

    written_hf_keys: tuple[str, ...] = ()
    """Those of `fixed_hf_keys` that an export states."""

    size_keys: dict[str, str] = field(default_factory=dict)
    """Further fields of `Sizes` in config.json, beside those of every family (`hf_keys.SIZE_KEYS`)."""

    hf_aliases: dict[str, str] = field(default_factory=dict)
    """Keys of config.json that are other names of the ones that are read."""

    stateful: tuple[str, ...] = ()
    """Megatron's modules of a layer that look for an extra state (FP8 scales of Transformer Engine) when they load."""

    buffers: str = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    """Pattern of tensors in old checkpoints that are computed anew and hold no weights."""

    @property
    def has_experts(self) -> bool:
        """Whether its layers have experts in the place of one MLP."""
        return any(entry.per_expert for entry in self.body)

    def entries(self, head: Head, tied: bool) -> tuple[Entry, ...]:
        """The table of one model."""
        return self.body if tied and head == "lm" else (*self.body, self.heads[head])

    def head_of(self, megatron_names: Iterable[str]) -> Head:
        """The head that the tensors of a Megatron checkpoint make."""
        return "reward" if self.heads["reward"].megatron in megatron_names else "lm"

    def hf_tensors(self, head: Head, tied: bool, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every Hugging Face tensor of a model."""
        for entry in self.entries(head, tied):
            shapes = entry.hf_shapes(sizes)
            for place in entry.places(sizes):
                yield from zip(entry.hf_names(place), shapes, strict=True)

    def extra_states(self, sizes: Sizes) -> Iterator[str]:
        """Names of the extra states of a checkpoint; those of the experts' layers are theirs by their names."""
        modules = [(module, (sizes.layers,)) for module in self.stateful]
        for entry in self.body:
            if entry.per_expert:
                modules.append((entry.megatron.removesuffix(".weight"), entry.stack(sizes)))
        for module, stack in modules:
            for place in itertools.product(*map(range, stack)):
                yield f"{module}._extra_state/shard_{_dotted(place)}_{_dotted(stack)}"

    def count(self, head: Head, tied: bool, sizes: Sizes) -> int:
        """Count the weights of a model."""
        return sum(math.prod(shape) for _, shape in self.hf_tensors(head, tied, sizes))

    def unlike(self, args: dict[str, Any]) -> list[str]:
        """List the arguments of Megatron, by their names in its namespace, that no model of this family has.

        One that is absent or None stands for what the family has, unless that is SOME.
        """
        return [
            f"{name} is {short(args[name])}; Hugging Face's {self.title} has {value!r}"
            for name, value in self.fixed_args.items()
            if (args.get(name) is None if value is SOME else args.get(name, value) not in (value, None))
        ]


def _dotted(numbers: tuple[int, ...]) -> str:
    """Write (1, 2) as 1.2."""
    return ".".join(map(str, numbers))
