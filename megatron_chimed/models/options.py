"""Options of the model, in the ``chimed:`` block."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linears of a layer by the names that they have in transformers, and so in PEFT's settings."""


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters in the place of all weights. Source: arXiv 2106.09685; names and meanings as in PEFT."""

    rank: int
    """r: columns of B and rows of A."""

    alpha: float
    """The change of a weight is alpha / rank times B A."""

    targets: list[str] = field(default_factory=lambda: list(LORA_TARGETS))
    """Which linears have adapters; all of them if not given."""

    dropout: float = 0.0
    """Of an adapter's input, in training."""

    rslora: bool = False
    """alpha / sqrt(rank) in the place of alpha / rank (arXiv 2312.03732)."""

    seed: int = 0
    """Of the random start of A."""

    @property
    def scaling(self) -> float:
        """Factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def problems(self) -> list[str]:
        """List values that make no sense, each with what was expected."""
        wrong = [f"lora: {name} is {getattr(self, name)}; expected more than 0" for name in ("rank", "alpha")
                 if not getattr(self, name) > 0]  # fmt: skip
        if not 0 <= self.dropout < 1:
            wrong.append(f"lora: dropout is {self.dropout}; expected 0 or more, and less than 1")
        unknown = [name for name in self.targets if name not in LORA_TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            found = ", ".join(self.targets) or "none"
            wrong.append(f"lora: targets are {found}; expected some of {', '.join(LORA_TARGETS)}")
        return wrong


@dataclass(frozen=True)
class ModelOptions:
    """What our layer specification adds to Megatron's model arguments."""

    attention: Literal["auto", "flash", "varlen", "sdpa", "flex"] = "auto"
    """Kernel of packed attention: flash-attn's varlen, torch's varlen, SDPA per document, or torch's FlexAttention,
    which is compiled. auto takes the first that the machine has, never FlexAttention. With dropout in attention varlen
    and flex give way to sdpa."""

    lora: LoraOptions | None = None
    """Train adapters, and not the weights of the base, which is what --load gives."""

    cross_entropy_chunk_tokens: int = 0
    """Tokens whose logits are held at a time, such as 1024, for pretrain and sft; 0: all. Less memory for a large
    vocabulary, for one more product with the output layer, in the backward pass; see `models.chunked_loss`."""

    family: str | None = None
    """Family of the model, for its export, where Megatron's arguments do not tell it: mistral."""

    llama3_low_freq_factor: float = 1.0
    """With --use-rope-scaling, which has it built in."""

    llama3_high_freq_factor: float = 4.0
    """Likewise."""

    llama3_original_max_position_embeddings: int = 8192
    """Likewise."""


NOT_OF_THE_WEIGHTS = ("attention", "lora", "cross_entropy_chunk_tokens")
"""Options that change no result of the weights: how it is computed, and what is trained beside them."""


def stated(options: ModelOptions) -> dict[str, Any]:
    """Options that belong to the weights and are not the default: a checkpoint keeps them with Megatron's arguments."""
    values = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in NOT_OF_THE_WEIGHTS}
    return {name: value for name, value in values.items() if value != getattr(ModelOptions, name)}
