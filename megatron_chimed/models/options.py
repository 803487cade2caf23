"""Options of the model, in the ``chimed:`` block."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelOptions:
    """What our layer specification adds to Megatron's model arguments."""

    attention: Literal["auto", "flash", "varlen", "sdpa"] = "auto"
    """Kernel of packed attention: flash-attn's varlen, torch's varlen, or SDPA per document. auto takes the first that
    the machine has."""
