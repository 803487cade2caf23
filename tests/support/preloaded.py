"""What a rank imports, for the process that `ranks` forks them from."""

from megatron_chimed.backend.quiet import fast_imports

with fast_imports():
    from megatron_chimed.backend import cpu

    cpu.install()

    import megatron_chimed.training.trainer  # noqa: F401
