"""Rotary positions of packed rows in one operation.

Megatron turns each document of a packed row by itself: with rows of many short documents that is a fifth of a training
step on a CPU. It also takes a table with a line for each token of the row, which is what this module makes.
"""

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.packed_seq_params import PackedSeqParams


class PackedRotaryEmbedding(RotaryEmbedding):
    """Megatron's rotary embedding; on a CPU its table for packed rows has the positions of all tokens, [t, 1, 1, d].

    The boundaries of a row are told by `get_rotary_seq_len`, which the model asks before each `forward`. On a GPU
    upstream would read every boundary back from the device for such a table, so there it stays as it is.
    """

    boundaries: torch.Tensor | None = None

    def get_rotary_seq_len(
        self, inference_context, transformer, transformer_input, transformer_config, packed_seq_params=None, **kwargs
    ) -> int:
        """As in Megatron; remembers the boundaries."""
        self.boundaries = _boundaries(packed_seq_params)
        return super().get_rotary_seq_len(
            inference_context, transformer, transformer_input, transformer_config, packed_seq_params, **kwargs
        )

    def forward(self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group=None) -> torch.Tensor:
        """The angles of positions from `offset`, [max_seq_len, 1, 1, d]; of a packed row those of each token."""
        angles = super().forward(max_seq_len, offset=offset, packed_seq=packed_seq, cp_group=cp_group)
        if not packed_seq or self.boundaries is None or angles.device.type != "cpu":
            return angles
        starts, lengths = self.boundaries[:-1], self.boundaries.diff()
        tokens = torch.arange(int(self.boundaries[-1]))
        return angles[tokens - starts.repeat_interleave(lengths)]


def _boundaries(packed: PackedSeqParams | None) -> torch.Tensor | None:
    """cu_seqlens, [documents + 1], of a packed row without padding between its documents."""
    if packed is None or packed.cu_seqlens_q_padded is not None:
        return None
    return packed.cu_seqlens_q


def take_packed_positions(model: torch.nn.Module) -> None:
    """Let a model's rotary embedding be a PackedRotaryEmbedding."""
    rotary = getattr(model, "rotary_pos_emb", None)
    if type(rotary) is RotaryEmbedding:
        rotary.__class__ = PackedRotaryEmbedding
