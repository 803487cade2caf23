"""The start of a process that imports torch and Megatron: quickly, without notes about what is absent on purpose."""

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Iterator


def silence_import_warnings() -> None:
    """Drop torch's and Megatron's notes about missing GPU libraries: a machine without CUDA, Transformer Engine or apex
    is a supported one. Call it before they are imported."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"megatron\.")


@contextlib.contextmanager
def fast_imports() -> Iterator[None]:
    """Import here, hushed, what stays to the end: the garbage collector, which would go through all of it again and
    again and take a fifth of the time, looks at it neither now nor later."""
    silence_import_warnings()
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
