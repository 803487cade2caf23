"""Private methods of torch's and Megatron's classes that ours override: only where it is free, or in the ledger."""

import importlib
import inspect

from guards import imports, tree

from megatron_chimed.training.upstream import PRIVATE_NAMES

FREE = ("megatron_chimed/training/", "megatron_chimed/models/")
COMMON = {"_abc_impl"}


def overridden(module) -> list[str]:
    """Dotted names of the private methods that a module's classes override."""
    found = []
    for cls in vars(module).values():
        if inspect.isclass(cls) and cls.__module__ == module.__name__:
            bases = [base for base in cls.__mro__[1:] if imports.is_under(base.__module__, imports.FOREIGN)]
            for name in vars(cls).keys() - COMMON:
                owners = [base for base in bases if name in vars(base)]
                if owners and name.startswith("_") and not name.startswith("__"):
                    found.append(f"{owners[0].__module__}.{owners[0].__qualname__}.{name}")
    return found


def test_overridden_private_methods_are_in_the_ledger():
    files = [path for path in tree.python_files("megatron_chimed/") if "torch" in tree.read(path)]
    others = [path for path in files if not path.startswith(FREE) and not path.endswith("__main__.py")]
    assert len(others) > 20
    found = set()
    for path in others:
        module = importlib.import_module(f"megatron_chimed.{imports.module_name(path)}")
        found |= {(path, name) for name in overridden(module)}
    benchmarks = tree.python_files("benchmarks/")
    listed = {(one.path, one.name) for one in PRIVATE_NAMES}
    reached = {(path, name) for path in benchmarks + others for _, name in imports.private_names(tree.read(path))}
    assert found | reached == listed
    assert overridden(importlib.import_module("megatron_chimed.models.reward"))  # the control: one that overrides
