"""FlexAttention of packed rows: one kernel that torch compiles for a mask that is given as a function.

torch has no backward pass of it on a CPU. There the same function becomes a mask of all pairs of tokens, which torch's
plain attention takes: slow, the same numbers, and so what tests hold against the other kernels.
"""

import functools

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_chimed.models.branches import BranchedSeqParams


def own_document(boundaries: torch.Tensor, tokens: int):
    """The mask of a row as torch's `mask_mod`: a token sees itself and the earlier ones of its document.

    boundaries: [k + 1], from 0 to tokens.
    """
    numbers = torch.arange(len(boundaries) - 1, device=boundaries.device)
    document = torch.repeat_interleave(numbers, boundaries.diff(), output_size=tokens)  # without a wait for the GPU

    def sees(batch, head, query, key):
        return (query >= key) & (document[query] == document[key])

    return sees


def block_mask(packed: PackedSeqParams, tokens: int):
    """The BlockMask [1, 1, t, t] of a packed row, made by the first layer and kept with the row for the others."""
    found = vars(packed).get("chimed_block_mask")
    if found is None:
        from torch.nn.attention.flex_attention import create_block_mask  # imports torch's compiler: a second

        branched = isinstance(packed, BranchedSeqParams)
        sees = packed.sees() if branched else own_document(packed.cu_seqlens_q, tokens)
        found = create_block_mask(sees, None, None, tokens, tokens, device=str(packed.cu_seqlens_q.device))
        packed.chimed_block_mask = found
    return found


@functools.cache
def compiled():
    """flex_attention for a GPU, compiled once for all layers."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedSeqParams, scale: float
) -> torch.Tensor:
    """query [t, heads, d], key and value [t, groups, d] -> [t, heads, d], each document on its own."""
    mask = block_mask(packed, query.size(0))
    grouped = query.size(1) != key.size(1)
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    if query.device.type == "cuda":
        context = compiled()(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    else:
        from torch.nn.attention.flex_attention import create_mask

        pairs = create_mask(mask.mask_mod, None, None, query.size(2), key.size(2), device="cpu")
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=pairs, scale=scale, enable_gqa=grouped)
    return context[0].transpose(0, 1)
