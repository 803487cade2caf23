"""What programs import, for the process that `fork_server` forks them from."""

import argparse
import functools
import importlib

from megatron_chimed.backend.quiet import fast_imports

with fast_imports():
    import torch
    from torch.cuda import random
    from torch.optim import adam

    from megatron_chimed.backend import cpu

    before = [(one, dict(vars(one))) for one in (torch.cuda, random, adam)]
    compiler = torch.compile
    cpu.install()

    from megatron.training import argument_utils
    from megatron.training.arguments import add_megatron_arguments

    import megatron_chimed.training.trainer  # noqa: F401

    for name in (
        "megatron.core.tokenizers.text",
        "torch._dynamo",
        "torch.distributed.run",
        "transformers.models.llama.modeling_llama",
    ):
        importlib.import_module(name)

    # Each rank would read and parse the sources of Megatron's options, for their help.
    group = argument_utils.ArgumentGroupFactory
    docstrings = functools.cache(functools.partial(group._get_field_docstrings, group.__new__(group)))
    group._get_field_docstrings = lambda self, options: docstrings(options)
    add_megatron_arguments(argparse.ArgumentParser())

# A program installs the CPU backend if it wants it: one that runs transformers alone does not.
cpu._installed.__exit__(None, None, None)
cpu._installed = None
torch.compile = compiler
for one, names in before:
    vars(one).update(names)
