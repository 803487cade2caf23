"""Weights of a model, rank by rank, by arithmetic on its family's table: the same list that the built model has."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_chimed.convert.families import LLAMA
from megatron_chimed.convert.family import LAYER, Entry, Family
from megatron_chimed.convert.sizes import Head, Sizes, pad_vocab
from megatron_chimed.models.options import LORA_TARGETS, LoraOptions

ORDER = (
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "mlp.linear_fc1.layer_norm_weight",
    "pre_mlp_layernorm",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
    "mlp.router",
    "mlp.experts.experts.linear_fc1",
    "mlp.experts.experts.linear_fc2",
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

    frozen: bool = False
    """Not trained: a base's, below adapters."""

    expert: bool = False
    """An expert's that other ranks hold than the weights beside it: its gradients have a buffer of their own."""


@dataclass(frozen=True)
class Model(Sizes):
    """Sizes of a model, with what its list of weights depends on besides."""

    vocab_multiple: int = 128
    """--make-vocab-size-divisible-by."""

    tied: bool = False
    head: Head = "lm"
    family: Family = LLAMA
    experts_per_token: int = 0
    lora: LoraOptions | None = None
    """Of adapters in the place of all weights."""

    def padded_vocab(self, tp: int) -> int:
        """Rows of the embedding: the vocabulary rounded up to vocab_multiple * tp, as Megatron does."""
        return pad_vocab(self.vocab, tp, self.vocab_multiple)

    def layer_entries(self) -> list[Entry]:
        """The weights of one layer, in the order of the module's parameters."""

        def place(entry: Entry) -> int:
            name = entry.megatron.removeprefix(LAYER)
            return next(number for number, start in enumerate(ORDER) if name.startswith(start))

        return sorted((entry for entry in self.family.body if entry.per_layer), key=place)

    def layer(self, tp: int, ep: int = 1, etp: int | None = None) -> list[Weight]:
        """The weights of one layer on one of `tp` ranks, in the order of the module's parameters.

        ep: ranks that share the experts out; etp: those that share an expert out, `tp` by default.
        """
        etp = etp or tp
        apart = ep > 1 or etp != tp
        entries = self.layer_entries()
        expert = [Weight(self._elements(entry, etp), expert=apart) for entry in entries if entry.per_expert]
        rest = [Weight(self._elements(entry, tp)) for entry in entries if not entry.per_expert]
        return rest + expert * (self.experts // ep)

    def _elements(self, entry: Entry, ranks: int) -> int:
        """Elements of a weight on one of the ranks that share it out, if they do."""
        return math.prod(entry.megatron_shape(self)) // (1 if entry.split_axis is None else ranks)

    def layer_matrices(self) -> int:
        """Elements of the matrices of one layer that are multiplied with a token."""
        matrices = [entry for entry in self.layer_entries() if len(entry.megatron_shape(self)) > 1]
        used = {True: self.experts_per_token, False: 1}
        return sum(used[entry.per_expert] * self._elements(entry, 1) for entry in matrices)

    def weights(self, tp: int = 1, pp: int = 1, stage: int = 0, ep: int = 1, etp: int | None = None) -> list[Weight]:
        """All weights of a rank of pipeline stage `stage`, in the order of the module's parameters; see `layer`."""
        found = list(self._weights(tp, pp, stage, self.layer(tp, ep, etp)))
        if self.lora is None:
            return found
        base = [replace(weight, frozen=not weight.float32) for weight in found]  # a reward head is trained as a whole
        return base + self.adapters(tp) * (self.layers // pp)

    def adapters(self, tp: int = 1) -> list[Weight]:
        """A and B of each target of a layer, on one of `tp` ranks: one of the two is shared out."""
        found = []
        for name, rows, columns in self.targets():
            column = name not in ("o_proj", "down_proj")
            found.append(Weight(self.lora.rank * columns // (1 if column else tp)))
            found.append(Weight(rows // (tp if column else 1) * self.lora.rank))
        return found

    def targets(self) -> list[tuple[str, int, int]]:
        """(name, out, in) of the linears of a layer that have adapters."""
        found = []
        for entry in self.layer_entries():
            for name, shape in zip(entry.hf, entry.hf_shapes(self), strict=True):
                target, kind = name.split(".")[-2:]
                if target in self.lora.targets and kind == "weight" and not entry.per_expert:
                    found.append((target, *shape))
        return sorted(found, key=lambda one: LORA_TARGETS.index(one[0]))  # as the module has them

    def _weights(self, tp: int, pp: int, stage: int, layer: list[Weight]) -> Iterator[Weight]:
        first, last = stage == 0, stage == pp - 1
        tied = self.tied and self.head == "lm"
        embedding = Weight(self.padded_vocab(tp) // tp * self.hidden, shared=tied and pp > 1)
        if first:
            yield embedding
        for _ in range(self.layers // pp):
            yield from layer
        if last:
            yield Weight(self.hidden)
            if self.head == "reward":
                yield Weight(self.hidden, float32=True)
            elif not (tied and first):
                yield embedding

    def parameters(self, tp: int = 1, pp: int = 1, stage: int = 0, ep: int = 1, etp: int | None = None) -> int:
        """Parameters of one rank."""
        return sum(weight.numel for weight in self.weights(tp, pp, stage, ep, etp))

    def active(self) -> int:
        """Parameters that a token passes: of each layer the experts that it is sent to."""
        idle = self.experts - self.experts_per_token
        expert = sum(self._elements(entry, 1) for entry in self.layer_entries() if entry.per_expert)
        return self.parameters() - self.layers * idle * expert
