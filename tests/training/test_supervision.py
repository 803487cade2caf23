"""What stops a training: gradients that are no numbers. The rest is in tests/integration/test_faults.py, on ranks."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cpu

PROGRAM = """
import torch
from types import SimpleNamespace
from megatron_chimed.backend import cpu
if cpu.is_needed():
    cpu.install()
from megatron_chimed.training.supervision import are_finite

for value in (0.0, 1.0, 1e30, float("nan"), float("inf"), float("-inf")):
    gradients = torch.full((1000,), 1e-3)
    gradients[700] = value
    [good, bad] = [SimpleNamespace(grad_data=data) for data in (torch.ones(10), gradients)]
    dense = SimpleNamespace(buffers=[good, bad])
    expert = SimpleNamespace(buffers=[good], expert_parallel_buffers=[bad])
    print(value, are_finite([dense]), are_finite([SimpleNamespace(buffers=[good]), expert]))
"""


def test_gradients_are_finite_unless_one_is_not_and_also_where_their_squares_are_not():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    found = [line.split() for line in done.stdout.splitlines()]
    assert found == [
        *([value, "True", "True"] for value in ("0.0", "1.0", "1e+30")),
        *([value, "False", "False"] for value in ("nan", "inf", "-inf")),
    ], done.stderr
