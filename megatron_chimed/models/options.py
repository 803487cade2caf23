"""Options of the model, in the ``chimed:`` block."""

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class ModelOptions:
    """What our layer specification adds to Megatron's model arguments."""

    attention: Literal["auto", "flash", "varlen", "sdpa"] = "auto"
    """Kernel of packed attention: flash-attn's varlen, torch's varlen, or SDPA per document. auto takes the first that
    the machine has."""

    cross_entropy_chunk_tokens: int = 0
    """Tokens whose logits are held at a time, for pretrain and sft; 0: all. Less memory for one more product with the
    output layer, in the backward pass; see `models.chunked_loss`."""

    family: str | None = None
    """Family of the model, for its export, where Megatron's arguments do not tell it: mistral."""

    llama3_low_freq_factor: float = 1.0
    """With --use-rope-scaling, which has it built in."""

    llama3_high_freq_factor: float = 4.0
    """Likewise."""

    llama3_original_max_position_embeddings: int = 8192
    """Likewise."""


HOW_IT_IS_COMPUTED = ("attention", "cross_entropy_chunk_tokens")
"""Options that change no result of the model."""


def stated(options: ModelOptions) -> dict[str, Any]:
    """Options that belong to the weights and are not the default: a checkpoint keeps them with Megatron's arguments."""
    values = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in HOW_IT_IS_COMPUTED}
    return {name: value for name, value in values.items() if value != getattr(ModelOptions, name)}
