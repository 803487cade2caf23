"""Megatron on a CPU: whether it is needed has one answer in a process, whatever the environment becomes."""

import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a device is there")

PROGRAM = """
import os
from megatron_chimed.backend import cpu
answers = [cpu.is_needed()] if {asked_before} else []
cpu.install()
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
print(*answers, cpu.is_needed())
"""


@pytest.mark.parametrize("asked_before", [True, False])
def test_the_backend_stays_needed_where_torch_is_told_to_count_devices(asked_before):
    """vLLM exports that variable, and so may a user."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTORCH_NVML_BASED_CUDA_CHECK"}
    program = [sys.executable, "-c", PROGRAM.format(asked_before=asked_before)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * (1 + asked_before), done.stderr
