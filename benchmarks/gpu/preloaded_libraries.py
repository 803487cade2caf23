"""What the children of the CPU twin import, for the process that `children` forks them from."""

import contextlib
import importlib

from megatron_chimed.backend.quiet import fast_imports

MODULES = (
    "megatron_chimed.training.trainer",
    "megatron_chimed.stages.sft",
    "megatron.core.tokenizers.text",
    "transformers.models.llama.modeling_llama",
)

with fast_imports():
    with contextlib.suppress(ImportError):  # what is absent, the measurements that need it say
        from megatron_chimed.backend import cpu

        cpu.install()
    for module in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
