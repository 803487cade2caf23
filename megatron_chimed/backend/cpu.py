"""Megatron on a CPU over gloo: the one file that replaces parts of torch.cuda, installed only where there is no CUDA.

Megatron asks for device "cuda" everywhere. Here that device is the CPU: a torch-function mode maps it, streams and
events do nothing, memory counters read 0, and the CUDA generator is torch's default one. Nothing else of Megatron is
changed, so what runs is its own trainer, tensor parallelism, optimizer and checkpoints.
"""

import argparse
import collections
import contextlib
import functools
import os
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_chimed.backend.quiet import hushed
from megatron_chimed.errors import InputError

CPU = torch.device("cpu")

_REFUSED = {
    "fp16": "use --bf16 or float32",
    "fp8": "use --bf16 or float32",
    "fp4": "use --bf16 or float32",
    "use_megatron_fsdp": "use --use-distributed-optimizer",
    "use_torch_fsdp2": "use --use-distributed-optimizer",
    "tp_comm_overlap": "leave it out",
    "optimizer_cpu_offload": "leave it out: the optimizer is on the CPU already",
    "profile": "leave it out: it needs nsys and a GPU",
    "async_save": "leave it out",
    "moe_grouped_gemm": "leave it out: experts are computed one after the other",
    "overlap_moe_expert_parallel_comm": "leave it out",
}


def is_needed() -> bool:
    """Whether this machine has no CUDA device, so that Megatron needs this backend; one answer for the whole process.

    Once this backend is there, torch cannot be asked again: with PYTORCH_NVML_BASED_CUDA_CHECK, which vLLM sets, it
    counts devices, and the count is one that stands here.
    """
    return _installed is not None or _without_device()


@functools.cache
def _without_device() -> bool:
    return not torch.cuda.is_available()


def refuse(args: argparse.Namespace) -> None:
    """Raise InputError listing every one of Megatron's parsed arguments that cannot work on a CPU, and what to do."""
    wrong = [f"--{name.replace('_', '-')} ({advice})" for name, advice in _REFUSED.items() if getattr(args, name, None)]
    if args.transformer_impl != "local":
        wrong.append(f"--transformer-impl {args.transformer_impl} (Transformer Engine cannot run here: use local)")
    if args.distributed_backend != "gloo":
        wrong.append(f"--distributed-backend {args.distributed_backend} (use gloo)")
    if args.num_experts and args.moe_token_dispatcher_type == "flex":  # noqa: S105
        wrong.append("--moe-token-dispatcher-type flex (use alltoall or allgather)")
    if args.context_parallel_size > 1:
        wrong.append("--context-parallel-size (use 1)")
    if args.cuda_graph_impl != "none":
        wrong.append(f"--cuda-graph-impl {args.cuda_graph_impl} (use none)")
    if wrong:
        raise InputError("these arguments need a GPU, and this machine has none: " + "; ".join(wrong))


def _is_cuda(device: Any) -> bool:
    """Whether an argument names a CUDA device. Integers are left alone: they are sizes as often as devices."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


PRODUCTS = {
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention,
}  # fmt: skip
"""Functions that a CPU without AVX-512 computes a hundred times slower in bfloat16 than in float32."""


def _float32(value: Any) -> Any:
    """A bfloat16 tensor in float32; all else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


class CudaMeansCpu(TorchFunctionMode):
    """Every torch function that is asked for a CUDA device, or for pinned memory, gets the CPU. Where a CPU has no
    bfloat16, its products are computed in float32 and rounded, as hardware that has it does."""

    def __init__(self):
        super().__init__()
        self.has_bfloat16 = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
        tensor = torch.Tensor
        self._changed = frozenset((tensor.cuda, tensor.pin_memory, tensor.to, tensor.type, *PRODUCTS))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not kwargs and func not in self._changed:  # nearly all, a hundred thousand in each second
            return func(*args)
        kwargs = kwargs or {}
        if func in PRODUCTS and not self.has_bfloat16 and "out" not in kwargs:
            wanted = next((one.dtype for one in args if isinstance(one, torch.Tensor)), None)
            if wanted == torch.bfloat16:
                given = {name: _float32(value) for name, value in kwargs.items()}
                return func(*map(_float32, args), **given).to(wanted)
        if func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        if kwargs:
            if kwargs.get("pin_memory"):
                kwargs = dict(kwargs, pin_memory=False)
            if _is_cuda(kwargs.get("device")):
                kwargs = dict(kwargs, device=CPU)
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        elif func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's gradient clipping asserts this name.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


class _Nothing:
    """A CUDA stream or event on a machine that has none: every operation is done when it is asked for."""

    def __init__(self, *args, **kwargs):
        pass

    def _done(self, *args, **kwargs):
        return None

    wait = wait_stream = wait_event = synchronize = record = _done

    def record_event(self, *args):
        return _Nothing()

    def query(self) -> bool:
        return True

    def elapsed_time(self, other) -> float:
        return 0.0


_installed: CudaMeansCpu | None = None


def install() -> None:
    """Make device "cuda" mean the CPU in this process. Call it before Megatron is imported; twice is harmless."""
    global _installed
    if _installed is not None:
        return
    torch.compile = _as_it_is
    _replace_devices()
    _replace_generator()
    _fuse_adam()
    _installed = CudaMeansCpu()
    _installed.__enter__()
    _replace_megatron_generator()
    _give_sizes_as_numbers()


def _as_it_is(model: Any = None, **options: Any) -> Any:
    """torch.compile without a compiler."""
    return _as_it_is if model is None else model


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Import parts of Megatron here, hushed, for what they hold, not to compute with: it compiles a few elementwise
    functions, which on a CPU takes 15 s at each start and saves nothing, and to import the compiler alone takes two."""
    compiler = torch.compile
    if is_needed():
        torch.compile = _as_it_is
    try:
        with hushed():
            yield
    finally:
        torch.compile = compiler


def _replace_devices() -> None:
    """Devices, streams, events and memory counters of torch.cuda."""
    cuda = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.device_count = lambda: int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cuda.get_device_capability = lambda *a: (8, 0)  # what Megatron takes for "has bf16"
    cuda.get_device_properties = lambda *a: types.SimpleNamespace(
        major=8, minor=0, name="cpu", total_memory=1 << 34, multi_processor_count=1
    )
    for name in ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *a, **k: None)
    for name in ("memory_reserved", "memory_allocated", "max_memory_allocated", "max_memory_reserved"):
        setattr(cuda, name, lambda *a, **k: 0)
    cuda.device_memory_used = lambda *a, **k: 0
    cuda.memory_stats = lambda *a, **k: collections.defaultdict(int)
    cuda.is_current_stream_capturing = lambda: False
    cuda.Stream = cuda.Event = _Nothing
    cuda.current_stream = cuda.default_stream = lambda *a: _Nothing()
    cuda.stream = lambda stream: contextlib.nullcontext()


def _replace_generator() -> None:
    """The CUDA random generator is torch's default generator."""
    cuda = torch.cuda
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device="cpu": torch.get_rng_state()
    cuda.set_rng_state = lambda state, device="cpu": torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.manual_seed(seed)


def _fuse_adam() -> None:
    """torch's Adam in one pass over a weight in place of twelve, where nothing else was asked for."""
    from torch.optim import adam

    original = adam.adam

    @functools.wraps(original)
    def fused_adam(*args: Any, **kwargs: Any) -> None:
        asked = kwargs.get("differentiable") or any(kwargs.get(way) is not None for way in ("fused", "foreach"))
        original(*args, **kwargs | ({} if asked else {"fused": True}))

    adam.adam = fused_adam


def _replace_megatron_generator() -> None:
    """Megatron's RNG tracker sets the state through torch.cuda._lazy_call, which on a CPU queues for ever: the tracker
    would do nothing, tensor-parallel ranks would drift apart, and memory would leak with every layer."""
    import megatron.core.tensor_parallel.random as random

    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


def _give_sizes_as_numbers() -> None:
    """Megatron makes numbers of the sizes of what expert-parallel ranks send each other as it copies them from the GPU;
    here they would stay tensors, which gloo does not take."""
    from megatron.core.transformer.moe import token_dispatcher

    original = token_dispatcher.maybe_move_tensor_to_cpu

    def as_numbers(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else original(tensor)

    token_dispatcher.maybe_move_tensor_to_cpu = as_numbers
