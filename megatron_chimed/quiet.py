"""Silence about what is absent on purpose: a machine without CUDA, Transformer Engine or apex is a supported one."""

import logging
import warnings


def hush() -> None:
    """Drop torch's and Megatron's notes about missing GPU libraries. Call it before they are imported."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"megatron\.")
