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
    weights = torch.randn(inputs[0].flatten(-2).shape, generator=torch.Generator().manual_seed(1)).to(inputs[0])
    return attend_row(kernel, inputs, packed(lengths, inputs[0].device), weights)


def attend_row(
    kernel: str, inputs: list[torch.Tensor], row: PackedSeqParams, weights: torch.Tensor
) -> list[torch.Tensor]:
    """The same of a row of any kind, with weights of the shape of the output."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = core(kernel, inputs[0].size(-1))(*leaves, None, packed_seq_params=row)
    (output * weights).sum().backward()
    return [tensor.float() for tensor in (output.detach(), *(leaf.grad for leaf in leaves))]


def draw(lengths: tuple[int, ...], groups: int, head: int) -> list[torch.Tensor]:
    """Query of four heads, key and value of `groups`, in float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), heads, head) for heads in (4, groups, groups)]
    return [torch.randn(shape, generator=generator) for shape in shapes]
