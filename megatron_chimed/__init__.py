"""The full training regime of ChiMed-GPT (arXiv 2311.06025) as an extension of Megatron-LM.

What is here is imported when it is first used: ``import megatron_chimed as mc`` costs nothing.
"""

from importlib import import_module

__version__ = "0.2.0"

_PLACES = {
    "Engine": "inference.open",
    "Template": "text.template",
    "Tokenizer": "text.tokenizer",
    "build_corpus": "commands.library",
    "evaluate": "commands.library",
    "hf_to_megatron": "convert.checkpoint",
    "megatron_to_hf": "convert.checkpoint",
    "pack_rewards": "commands.library",
    "pack_sft": "commands.library",
    "train": "commands.library",
}
"""The public names, and the module of each."""

__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    """A public name, from its module."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted([*globals(), *__all__])
