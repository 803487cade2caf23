"""Rotary positions: of packed rows in one operation, and with the constants of llama3's scaling that a model has.

Megatron turns each document of a packed row by itself: with rows of many short documents that is a fifth of a training
step on a CPU. It also takes a table with a line for each token of the row, which is what this module makes.
"""

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_chimed.models.branches import BranchedSeqParams
from megatron_chimed.models.options import ModelOptions


class _PackedPositions:
    """The part of a rotary embedding that knows a packed row.

    The row is told by `get_rotary_seq_len`, which the model asks before each `forward`. On a GPU upstream would read
    every boundary of documents back from the device for such a table, so there it stays as it is; a row with branches
    is one document to upstream.
    """

    row: PackedSeqParams | None = None

    def get_rotary_seq_len(
        self, inference_context, transformer, transformer_input, transformer_config, packed_seq_params=None, **kwargs
    ) -> int:
        """As in Megatron; remembers the row."""
        self.row = packed_seq_params
        return super().get_rotary_seq_len(
            inference_context, transformer, transformer_input, transformer_config, packed_seq_params, **kwargs
        )

    def of_tokens(self, angles: torch.Tensor, packed_seq: bool) -> torch.Tensor:
        """Angles of positions from 0, [longest, 1, 1, d] -> those of each token of a packed row, [t, 1, 1, d]."""
        if packed_seq and isinstance(self.row, BranchedSeqParams):
            return angles[self.row.positions]
        boundaries = _boundaries(self.row)
        if not packed_seq or boundaries is None or angles.device.type != "cpu":
            return angles
        starts, lengths = boundaries[:-1], boundaries.diff()
        tokens = torch.arange(int(boundaries[-1]))
        return angles[tokens - starts.repeat_interleave(lengths)]


class PackedRotaryEmbedding(_PackedPositions, RotaryEmbedding):
    """Megatron's rotary embedding; on a CPU its table for packed rows has the positions of all tokens, [t, 1, 1, d]."""

    def forward(self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group=None) -> torch.Tensor:
        """The angles of positions from `offset`, [max_seq_len, 1, 1, d]; of a packed row those of each token."""
        angles = super().forward(max_seq_len, offset=offset, packed_seq=packed_seq, cp_group=cp_group)
        return self.of_tokens(angles, packed_seq)


class PackedYarnRotaryEmbedding(_PackedPositions, YarnRotaryEmbedding):
    """The same of YaRN."""

    def forward(
        self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group=None
    ) -> tuple[torch.Tensor, float]:
        """(angles as those of `PackedRotaryEmbedding`, the attention factor, which Megatron's attention knows too)."""
        angles, scale = super().forward(max_seq_len, offset=offset, packed_seq=packed_seq, cp_group=cp_group)
        return self.of_tokens(angles, packed_seq), scale


def _boundaries(packed: PackedSeqParams | None) -> torch.Tensor | None:
    """cu_seqlens, [documents + 1], of a packed row without padding between its documents."""
    if packed is None or packed.cu_seqlens_q_padded is not None:
        return None
    return packed.cu_seqlens_q


def take_packed_positions(model: torch.nn.Module) -> None:
    """Let a model's rotary embedding be one for packed rows."""
    rotary = getattr(model, "rotary_pos_emb", None)
    if type(rotary) is RotaryEmbedding:
        rotary.__class__ = PackedRotaryEmbedding
    elif type(rotary) is YarnRotaryEmbedding:
        rotary.__class__ = PackedYarnRotaryEmbedding


def set_llama3_constants(rotary: RotaryEmbedding, base: int, factor: float, options: ModelOptions) -> None:
    """Scale the frequencies by llama3's rule with the constants of `options`: Megatron's GPTModel passes on the factor
    alone."""
    size = 2 * rotary.inv_freq.numel()
    powers = torch.arange(0, size, 2, dtype=torch.float32, device=rotary.inv_freq.device) / size
    rotary.inv_freq = rotary._apply_scaling(
        1.0 / base**powers,
        factor=factor,
        low_freq_factor=options.llama3_low_freq_factor,
        high_freq_factor=options.llama3_high_freq_factor,
        original_max_position_embeddings=options.llama3_original_max_position_embeddings,
    )


def angles(model: torch.nn.Module, length: int) -> torch.Tensor:
    """The angles of the positions from 0 of a model's rotary embedding of any kind, [length, 1, 1, d]."""
    found = model.rotary_pos_emb(length)
    return found[0] if isinstance(found, tuple) else found
