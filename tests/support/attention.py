"""Packed attention of one of our kernels by itself, on any device, and its gradients."""

import itertools
from types import SimpleNamespace

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType

from megatron_chimed.models.attention import CoreAttention


def packed(lengths: tuple[int, ...], device: torch.device) -> PackedSeqParams:
    """Of a row of documents of these lengths."""
    boundaries = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    longest = max(lengths)
    return PackedSeqParams("thd", boundaries, boundaries, max_seqlen_q=longest, max_seqlen_kv=longest)


def core(kernel: str, head: int, dropout: float = 0.0) -> CoreAttention:
    """Core attention as the layer specification makes it."""
    config = SimpleNamespace(kv_channels=head, attention_dropout=dropout, sequence_parallel=True)
    return type("Attention", (CoreAttention,), {"kernel": kernel})(config, 1, AttnMaskType.causal, "self")


def attend(kernel: str, inputs: list[torch.Tensor], lengths: tuple[int, ...]) -> list[torch.Tensor]:
    """[output, gradients of query, key and value] of a sum whose weights differ from place to place, in float32."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    row = packed(lengths, inputs[0].device)
    output = core(kernel, inputs[0].size(-1))(*leaves, None, packed_seq_params=row)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    (output * weights).sum().backward()
    return [tensor.float() for tensor in (output.detach(), *(leaf.grad for leaf in leaves))]


def draw(lengths: tuple[int, ...], groups: int, head: int) -> list[torch.Tensor]:
    """Query of four heads, key and value of `groups`, in float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), heads, head) for heads in (4, groups, groups)]
    return [torch.randn(shape, generator=generator) for shape in shapes]
