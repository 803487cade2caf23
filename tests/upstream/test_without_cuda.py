"""What fails on a machine without CUDA, without the CPU backend; and faults that show without a training."""

import json
import subprocess
import sys

import pytest
import torch

from megatron_chimed.training.upstream import PATCHES

pytestmark = [
    pytest.mark.real_processes,
    pytest.mark.skipif(torch.cuda.is_available(), reason="shows what fails without CUDA"),
]

PROGRAM = """
import inspect, json, multiprocessing, sys, torch
found = {}
def fails(call, kind=BaseException, text=""):
    try:
        call()
    except kind as error:
        return text in str(error)
    return False
found["cuda_means_cpu"] = fails(torch.cuda.current_device) and fails(lambda: torch.zeros(1, device="cuda"))
found["cuda_generator"] = fails(torch.cuda.get_rng_state)
from torch.optim import adam
passes, fused = [], adam._fused_adam
adam._fused_adam = lambda *args, **options: passes.append(1) or fused(*args, **options)
weight = torch.nn.Parameter(torch.zeros(1))
weight.grad = torch.ones(1)
torch.optim.AdamW([weight], fused=True).step()
torch.optim.AdamW([weight]).step()
found["fused_adam"] = len(passes) == 1
import megatron.core.tensor_parallel.random as random
before = torch.get_rng_state()
queued = len(torch.cuda._queued_calls)
random._set_cuda_rng_state(torch.manual_seed(1).get_state())
found["rng_tracker"] = len(torch.cuda._queued_calls) == queued + 1
found["no_compiler"] = torch.compile(lambda x: x) is not None and "torch._dynamo" in sys.modules
from megatron.training import initialize, training
found["allow_no_cuda"] = fails(initialize.initialize_megatron, AssertionError, "CUDA")
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
from megatron.core.transformer.moe import token_dispatcher
sizes = token_dispatcher.maybe_move_tensor_to_cpu(torch.tensor([1]), as_numpy=True)
exchange = lambda sizes: torch.distributed.all_to_all_single(torch.zeros(1), torch.zeros(1), sizes, sizes)
exchange([1])
found["sizes_as_numbers"] = fails(lambda: exchange(sizes), TypeError)
from megatron.core.datasets import utils
found["skip_compilation"] = fails(utils.compile_helpers, SystemExit)  # what _compile_dependencies begins with
from megatron.core.dist_checkpointing.strategies import filesystem_async
filesystem_async.get_write_results_queue()
found["save_without_another_process"] = len(multiprocessing.active_children()) == 1
found["keep_model"] = inspect.signature(training.pretrain).return_annotation is inspect.Signature.empty and not any(
    line.strip().startswith("return ") and "model" in line for line in inspect.getsource(training.pretrain).splitlines()
)
print("FOUND", json.dumps(found))
sys.stdout.flush()
for child in multiprocessing.active_children():
    child.kill()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, bool]:
    """{patch: whether its fault is there} in a process without patches."""
    store = tmp_path_factory.mktemp("store") / "store"
    done = subprocess.run([sys.executable, "-c", PROGRAM, store], capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND "))


NAMES = (
    *("cuda_means_cpu", "cuda_generator", "rng_tracker", "no_compiler", "allow_no_cuda", "skip_compilation"),
    *("save_without_another_process", "keep_model", "sizes_as_numbers", "fused_adam"),
)


@pytest.mark.parametrize("name", NAMES)
def test_the_fault_is_there_without_the_patch(found, name):
    assert found[name], f"upstream has mended {name}: remove the patch"


def test_every_patch_has_its_test():
    from support.paths import TESTS

    text = "".join(path.read_text() for path in (TESTS / "upstream").glob("test_*.py"))
    assert [patch.name for patch in PATCHES if f'"{patch.name}"' not in text] == []
