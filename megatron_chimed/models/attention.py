"""Core attention of the layer specification without Transformer Engine: dense causal, or packed documents.

Megatron's local DotProductAttention keeps S x S scores and refuses packed rows. This one keeps no scores, and in a
packed row a token sees only the earlier tokens of its own document (`cu_seqlens`).
"""

import contextlib
import importlib.util
import math

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule

from megatron_chimed.models import flex
from megatron_chimed.models.branches import BranchedSeqParams

KERNELS = ("flash", "varlen", "sdpa", "flex")


def choose_kernel(wanted: str) -> str:
    """The kernel of packed attention: "auto" is the first of flash, varlen, sdpa that this machine has, never flex.

    Raises ValueError when the one asked for cannot run here.
    """
    has_gpu = torch.cuda.is_available()
    available = {
        "flash": has_gpu and importlib.util.find_spec("flash_attn") is not None,
        "varlen": has_gpu and importlib.util.find_spec("torch.nn.attention.varlen") is not None,
        "sdpa": True,
        "flex": True,
    }
    if wanted == "auto":
        return next(kernel for kernel in KERNELS if available[kernel])
    if not available[wanted]:
        needs = "a GPU" if not has_gpu else "the package flash-attn"
        raise ValueError(f"attention: {wanted} needs {needs}; use auto or sdpa")
    return wanted


class CoreAttention(MegatronModule):
    """softmax(QK^T * scale + causal mask) V on this rank's heads, with Megatron's signature of a core attention.

    Dense: query [sq, b, heads, d], key and value [sk, b, groups, d] -> [sq, b, heads * d].
    Packed: query [t, heads, d], key and value [t, groups, d] -> [t, heads * d], documents given by
    `packed_seq_params.cu_seqlens_q` [k + 1], or segments with what they share by a BranchedSeqParams: on a GPU by
    FlexAttention, whatever the kernel of documents is.
    """

    kernel = "sdpa"  # of packed attention; gpt.layer_spec makes a subclass for another one

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ):
        super().__init__(config=config)
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """attention_mask: None for causal, else [b, 1, sq, sk] with True where a token must not look."""
        dropout = self.dropout if self.training else 0.0
        with self._dropout_generator(dropout):
            if packed_seq_params is None:
                query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
                context = self._sdpa(query, key, value, dropout, attention_mask).permute(2, 0, 1, 3)
            elif isinstance(packed_seq_params, BranchedSeqParams):
                context = self._branched(query, key, value, dropout, packed_seq_params)
            else:
                context = self._packed(query, key, value, dropout, packed_seq_params)
        return context.flatten(-2)

    def _dropout_generator(self, dropout: float):
        """Heads differ between tensor-parallel ranks, so their dropout masks must too: the model-parallel generator."""
        if dropout and not self.config.sequence_parallel:
            return tensor_parallel.get_cuda_rng_tracker().fork()
        return contextlib.nullcontext()

    def _sdpa(self, query, key, value, dropout: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        """query [b, heads, sq, d], key and value [b, groups, sk, d] -> [b, heads, sq, d]."""
        length, context = query.size(2), key.size(2)
        if mask is not None:
            mask = ~mask
        elif 1 < length < context:  # behind what is cached or shared; one new token sees all of it
            # torch's causal_lower_right is no mask where torch functions are turned off, as in scoring.
            mask = torch.ones(length, context, dtype=torch.bool, device=query.device).tril(context - length)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None and length == context,
            scale=self.softmax_scale,
            enable_gqa=query.size(1) != key.size(1),
        )

    def _packed(self, query, key, value, dropout: float, packed: PackedSeqParams) -> torch.Tensor:
        """query [t, heads, d], key and value [t, groups, d] -> [t, heads, d], each document on its own."""
        boundaries, longest = packed.cu_seqlens_q, packed.max_seqlen_q
        half = query.dtype in (torch.float16, torch.bfloat16)  # what the GPU kernels take
        if self.kernel == "flash" and half:
            from flash_attn import flash_attn_varlen_func

            return flash_attn_varlen_func(
                query, key, value, boundaries, boundaries, longest, longest,
                dropout_p=dropout, softmax_scale=self.softmax_scale, causal=True,
            )  # fmt: skip
        if self.kernel == "varlen" and half and not dropout:
            from torch.nn.attention.varlen import varlen_attn

            if query.size(1) != key.size(1):
                key, value = (t.repeat_interleave(query.size(1) // t.size(1), dim=1) for t in (key, value))
            return varlen_attn(
                query, key, value, boundaries, boundaries, longest, longest,
                scale=self.softmax_scale, window_size=(-1, 0),
            )  # fmt: skip
        if self.kernel == "flex" and not dropout:
            return flex.attend(query, key, value, packed, self.softmax_scale)
        lengths = boundaries.diff().tolist()
        documents = zip(*(t.split(lengths) for t in (query, key, value)), strict=True)
        return torch.cat(
            [
                self._sdpa(*(t.transpose(0, 1)[None] for t in document), dropout)[0].transpose(0, 1)
                for document in documents
            ]
        )

    def _branched(self, query, key, value, dropout: float, row: BranchedSeqParams) -> torch.Tensor:
        """query [t, heads, d], key and value [t, groups, d] -> [t, heads, d], each segment behind what it shares."""
        if (self.kernel == "flex" or query.is_cuda) and not dropout:
            return flex.attend(query, key, value, row, self.softmax_scale)
        lengths = np.diff(row.bounds).tolist()
        pieces = ((t.transpose(0, 1)[None] for t in tensor.split(lengths)) for tensor in (query, key, value))
        found, document, cut = [], (), {}  # cut: of the document, what was shared already, by its length
        for own, (first, last) in zip(zip(*pieces, strict=True), row.prefixes.tolist(), strict=True):
            asking, *seen = own
            if first == last:
                document, cut = seen, {}
            else:
                if last not in cut:
                    cut[last] = [tensor[:, :, : last - first] for tensor in document]
                seen = [torch.cat(both, dim=2) for both in zip(cut[last], seen, strict=True)]
            found.append(self._sdpa(asking, *seen, dropout)[0].transpose(0, 1))
        return torch.cat(found)
