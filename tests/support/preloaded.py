"""What a rank imports, at its start and in its course, for the process that `ranks` forks them from."""

import importlib

from megatron_chimed.backend.quiet import fast_imports

with fast_imports():
    from megatron_chimed.backend import cpu

    cpu.install()

    for name in ("megatron_chimed.training.trainer", "megatron.core.tokenizers.text", "torch._dynamo"):
        importlib.import_module(name)
