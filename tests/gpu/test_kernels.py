"""Kernels for packed rows on a GPU against attention in float32 on each document apart, forward and backward.

The bound is in the manner of flash-attn's own tests: in bf16 a kernel is at most twice as far from float32 as plain
attention in bf16 is, its gradients five times (those of shared keys are sums over several heads).
"""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_chimed.models.attention import CoreAttention
from megatron_chimed.stages.batch import packed_parameters

LENGTHS = (130, 1, 64, 257, 7, 53)
HEAD = 64
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None
KERNELS = [
    pytest.param("flash", marks=pytest.mark.skipif(not HAS_FLASH, reason="flash-attn is not installed")),
    "varlen",
    "sdpa",
]


def attend(kernel: str, inputs: list[torch.Tensor], lengths=LENGTHS) -> list[torch.Tensor]:
    """[output, gradients of query, key and value] of a sum whose weights differ from place to place, in float32."""
    config = SimpleNamespace(kv_channels=HEAD, attention_dropout=0.0, sequence_parallel=False)
    attention = type("Attention", (CoreAttention,), {"kernel": kernel})(config, 1, AttnMaskType.causal, "self")
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = attention(*leaves, None, packed_seq_params=packed_parameters(positions))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    (output * weights).sum().backward()
    return [tensor.float() for tensor in (output.detach(), *(leaf.grad for leaf in leaves))]


def draw(groups: int) -> list[torch.Tensor]:
    """Query of four heads, key and value of `groups`, in bf16."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), heads, HEAD) for heads in (4, groups, groups)]
    return [torch.randn(shape, generator=generator).to("cuda", torch.bfloat16) for shape in shapes]


def errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    return [(one - other).abs().max().item() for one, other in zip(found, exact, strict=True)]


@pytest.mark.parametrize("groups", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_as_exact_as_plain_attention_in_bf16(kernel, groups):
    inputs = draw(groups)
    with sdpa_kernel(SDPBackend.MATH):
        exact = attend("sdpa", [tensor.float() for tensor in inputs])
        plain = errors(attend("sdpa", inputs), exact)
    found = errors(attend(kernel, inputs), exact)
    print(f"{kernel}: {found}; plain attention in bf16: {plain}")
    for error, bound, factor in zip(found, plain, (2, 5, 5, 5), strict=True):
        assert error <= factor * bound + 1e-5
    joined = errors(attend(kernel, inputs, (sum(LENGTHS),)), exact)
    assert min(joined) > 10 * max(plain), "the control: attention across documents is another function"
