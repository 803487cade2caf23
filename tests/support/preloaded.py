"""What a rank imports, for the process that `ranks` forks them from."""

from megatron_chimed.backend.quiet import fast_imports

with fast_imports():
    from megatron_chimed.backend import cpu

    cpu.install()

    import torch._dynamo  # noqa: F401 (this and the one before are imported by a rank in its course)
