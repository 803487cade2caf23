"""Weights of a LLaMA-shaped model, rank by rank, by arithmetic: the same list that the built model has."""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_chimed.convert.sizes import Head, Sizes, pad_vocab


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
    qk_norm: bool = False
    head: Head = "lm"

    def padded_vocab(self, tp: int) -> int:
        """Rows of the embedding: the vocabulary rounded up to vocab_multiple * tp, as Megatron does."""
        return pad_vocab(self.vocab, tp, self.vocab_multiple)

    def layer(self, tp: int) -> list[int]:
        """Elements of each weight of one layer on one of `tp` ranks: norm, projections, norm, MLP; only sizes count."""
        norms = [self.head_dim] * 2 if self.qk_norm else []
        qkv_dim = self.q_dim + 2 * self.kv_dim
        attention = [self.hidden, self.q_dim * self.hidden // tp, qkv_dim * self.hidden // tp, *norms]
        return [*attention, self.hidden, 2 * self.ffn * self.hidden // tp, self.ffn * self.hidden // tp]

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
