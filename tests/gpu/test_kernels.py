"""Kernels for packed rows on a GPU against attention in float32 on each document apart, forward and backward.

The bound is in the manner of flash-attn's own tests: in bf16 a kernel is at most twice as far from float32 as plain
attention in bf16 is, its gradients five times (those of shared keys are sums over several heads).
"""

import importlib.util

import pytest
import torch
from support.attention import attend, attend_row
from support.attention import draw as draw_on_cpu
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_chimed.models.branches import describe_row

LENGTHS = (130, 1, 64, 257, 7, 53)
HEAD = 64
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None
KERNELS = [
    pytest.param("flash", marks=pytest.mark.skipif(not HAS_FLASH, reason="flash-attn is not installed")),
    "varlen",
    "sdpa",
    "flex",
]


def draw(groups: int) -> list[torch.Tensor]:
    """Query of four heads, key and value of `groups`, in bf16."""
    return [tensor.to("cuda", torch.bfloat16) for tensor in draw_on_cpu(LENGTHS, groups, HEAD)]


def errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    return [(one - other).abs().max().item() for one, other in zip(found, exact, strict=True)]


@pytest.mark.parametrize("groups", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_as_exact_as_plain_attention_in_bf16(kernel, groups):
    inputs = draw(groups)
    with sdpa_kernel(SDPBackend.MATH):
        exact = attend("sdpa", [tensor.float() for tensor in inputs], LENGTHS)
        plain = errors(attend("sdpa", inputs, LENGTHS), exact)
    found = errors(attend(kernel, inputs, LENGTHS), exact)
    print(f"{kernel}: {found}; plain attention in bf16: {plain}")
    for error, bound, factor in zip(found, plain, (2, 5, 5, 5), strict=True):
        assert error <= factor * bound + 1e-5
    joined = errors(attend(kernel, inputs, (sum(LENGTHS),)), exact)
    assert min(joined) > 10 * max(plain), "the control: attention across documents is another function"


@pytest.mark.parametrize("groups", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_answers_that_share_a_prompt_are_as_exact_as_apart(groups):
    """What a GPU takes, FlexAttention, against SDPA of each answer behind its prompt on the CPU."""
    positions = torch.tensor([[*range(200), *range(130, 180), *range(130, 131), *range(57), *range(40, 90)]])
    inputs = [tensor.to(torch.bfloat16).float() for tensor in draw_on_cpu((positions.numel(),), groups, HEAD)]
    weights = torch.randn(positions.numel(), 4 * HEAD, generator=torch.Generator().manual_seed(1))
    exact = attend_row("sdpa", inputs, describe_row(positions, "cpu"), weights)
    for dtype, bound in ((torch.float32, 1e-2), (torch.bfloat16, 1e-1)):  # TF32 may be on
        on_gpu = [tensor.to("cuda", dtype) for tensor in inputs]
        found = attend_row("auto", on_gpu, describe_row(positions), weights.to("cuda", dtype))
        difference = max(errors([one.cpu() for one in found], exact))
        print(f"{dtype}: {difference}")
        assert difference <= bound * max(one.abs().max() for one in exact)
