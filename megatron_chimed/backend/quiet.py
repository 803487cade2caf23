"""The start of a process that imports torch and Megatron: quickly, without notes about what is absent on purpose."""

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Iterator

from megatron_chimed.backend.deferred import defer_import


def silence_import_warnings() -> None:
    """Drop torch's and Megatron's notes about missing GPU libraries: a machine without CUDA, Transformer Engine or apex
    is a supported one. Call it before they are imported."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"megatron\.")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Import here without those notes, and leave the process as it was: for a module, which changes nothing of it."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    with warnings.catch_warnings():
        silence_import_warnings()
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def fast_imports() -> Iterator[None]:
    """Import here, hushed, what stays to the end: the garbage collector, which would go through all of it again and
    again and take a fifth of the time, looks at it neither now nor later."""
    silence_import_warnings()
    defer_import("wandb")  # of megatron.core.timers, for a writer that few runs ask for: a sixth of the time
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def work_offline() -> None:
    """Let no library of this process ask a hub or draw bars beside ours. For a command, before they are imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
