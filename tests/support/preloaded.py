"""What a rank imports, for the process that `ranks` forks them from."""

import importlib

from megatron_chimed.backend.quiet import fast_imports

with fast_imports():
    from megatron_chimed.backend import cpu

    cpu.install()

    import megatron_chimed.training.trainer  # noqa: F401

    for name in ("megatron.core.tokenizers.text", "torch._dynamo"):  # a rank imports them in its course
        importlib.import_module(name)
