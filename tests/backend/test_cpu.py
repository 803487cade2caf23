"""Megatron on a CPU: whether it is needed has one answer in a process, whatever the environment becomes; products in
bfloat16; Adam in one pass."""

import os
import subprocess
import sys

import pytest
import torch

from megatron_chimed.backend.cpu import CudaMeansCpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a device is there")

PROGRAM = """
import os
from megatron_chimed.backend import cpu
answers = [cpu.is_needed()] if {asked_before} else []
cpu.install()
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
print(*answers, cpu.is_needed())
"""


@pytest.mark.real_processes
@pytest.mark.parametrize("asked_before", [True, False])
def test_the_backend_stays_needed_where_torch_is_told_to_count_devices(asked_before):
    """vLLM exports that variable, and so may a user."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTORCH_NVML_BASED_CUDA_CHECK"}
    program = [sys.executable, "-c", PROGRAM.format(asked_before=asked_before)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * (1 + asked_before), done.stderr


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_products_of_a_cpu_without_bfloat16_are_those_of_float32_rounded(has_bfloat16):
    mode = CudaMeansCpu()
    mode.has_bfloat16 = has_bfloat16
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=draw).bfloat16().requires_grad_() for shape in ((64, 300), (20, 300)))
    with mode:
        found = [torch.nn.functional.linear(x, weight), x.matmul(weight.t()), x @ weight.t()]
        kept = torch.matmul(x.float(), weight.float().t())
    exact = x.detach().float() @ weight.detach().float().t()
    for product in found:
        assert product.dtype == torch.bfloat16
        assert has_bfloat16 or torch.equal(product, exact.bfloat16())
        torch.testing.assert_close(product.float(), exact, rtol=2**-7, atol=2**-7)
    assert torch.equal(kept, exact)  # other types are left alone
    found[0].sum().backward()
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad[0].float(), weight.detach().float().sum(0), rtol=2**-6, atol=2**-4)


ADAM = """
import torch
from torch.optim import adam
from megatron_chimed.backend import cpu

def train(**options):
    weights = [torch.randn(n, 37, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (1, 20, 300)]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, **options)
    for _ in range(20):
        optimizer.zero_grad()
        sum((weight.sin() * weight).sum() for weight in weights).backward()
        optimizer.step()
    return torch.cat(weights), optimizer.state_dict()["param_groups"]

passes, original = [], adam._fused_adam
adam._fused_adam = lambda *args, **options: passes.append(1) or original(*args, **options)
expected, groups = train()
assert not passes
cpu.install()
found, groups_now = train()
assert len(passes) == 20 and groups == groups_now  # nothing of it is in a checkpoint
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
for way in ({"foreach": True}, {"foreach": False}, {"fused": False}):
    asked, _ = train(**way)
    assert len(passes) == 20 and torch.equal(asked, expected)
print("as it should be")
"""


def test_adam_takes_one_pass_and_its_steps_are_those_of_torch():
    done = subprocess.run([sys.executable, "-c", ADAM], capture_output=True, text=True)
    assert done.stdout.strip() == "as it should be", done.stderr
