"""The families of models that are served: a page of data each, and how a model's family is told.

A new family is such a page, listed in FAMILIES (docs/families.md).
"""

from typing import Any

from megatron_chimed.convert.families.blocks import ABSENT
from megatron_chimed.convert.families.llama import LLAMA
from megatron_chimed.convert.families.mistral import MISTRAL
from megatron_chimed.convert.families.qwen2 import QWEN2
from megatron_chimed.convert.families.qwen3 import QWEN3
from megatron_chimed.convert.families.qwen3_moe import QWEN3_MOE
from megatron_chimed.convert.family import Family
from megatron_chimed.convert.sizes import Head
from megatron_chimed.errors import InputError

FAMILIES = (LLAMA, QWEN2, QWEN3, MISTRAL, QWEN3_MOE)
"""Of families with the same arguments of Megatron the first is taken, unless the model names another."""


def of_architecture(name: object) -> tuple[Family, Head] | None:
    """The family and the head of a class name in config.json; None when no family has it."""
    for family in FAMILIES:
        if isinstance(name, str) and name in family.architectures:
            return family, family.architectures[name]
    return None


def of_args(args: dict[str, Any], name: str | None = None) -> tuple[Family, list[str]]:
    """The family of Megatron's arguments, and those that are not of it: none unless no family has them all.

    args: by their names in Megatron's namespace; one that is absent is Megatron's default. name: that of the family,
    where the model tells it. Without it the family with the fewest such arguments is taken, of equal ones the first.
    Raises InputError when there is no family of this name.
    """
    candidates = [(family, family.unlike(ABSENT | args)) for family in FAMILIES if name in (None, family.name)]
    if not candidates:
        raise InputError(f"family {name!r} is not known; expected one of {', '.join(one.name for one in FAMILIES)}")
    return min(candidates, key=lambda one: len(one[1]))
