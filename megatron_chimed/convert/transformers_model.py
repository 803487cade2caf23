"""Load a Hugging Face folder by transformers: the one place, with its one message."""

from pathlib import Path
from typing import Any

import torch

from megatron_chimed.checkpoints import split_adapter
from megatron_chimed.errors import InputError


def load_model(folder: str | Path, kind: str, dtype: torch.dtype | str) -> torch.nn.Module:
    """A folder's model by a class of transformers, in evaluation mode.

    folder: or BASE+ADAPTER, of PEFT; kind: the class, AutoModelForCausalLM or AutoModelForSequenceClassification;
    dtype: "auto" is that of the weights. Raises InputError when transformers cannot load it, or the folder lacks a
    weight of such a model.
    """
    adapter, base = split_adapter(folder)
    if base is not None:
        more = {"num_labels": 1} if kind == "AutoModelForSequenceClassification" else {}
        return _with_adapters(_load(base, kind, dtype, **more)[0], adapter)
    model, missing = _load(folder, kind, dtype)
    if missing:
        what = "language model" if kind == "AutoModelForCausalLM" else "reward model"
        raise InputError(f"{folder}: no {what}; {missing[0]} is missing")
    return model


def _load(folder: str | Path, kind: str, dtype: torch.dtype | str, **more: Any) -> tuple[torch.nn.Module, list[str]]:
    """(model, the weights that the folder lacks). Raises InputError."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True, **more}
    try:
        model, report = getattr(transformers, kind).from_pretrained(folder, **options)
    except Exception as error:  # transformers raises nearly anything on a broken folder
        raise InputError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from None
    return model.eval(), sorted(report["missing_keys"])


def _with_adapters(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """A model with adapters in its layers, under its own class. Raises InputError."""
    try:
        import peft
    except ImportError:
        raise InputError(f"{folder}: adapters of PEFT; install it, pip install 'megatron_chimed[peft]'") from None
    try:
        peft.PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
    except Exception as error:  # peft raises nearly anything on a folder that does not fit
        raise InputError(f"{folder}: PEFT cannot load it ({' '.join(str(error).split())[:200]})") from None
    return model.eval()


def to_device(model: torch.nn.Module) -> torch.nn.Module:
    """On one GPU where there is one, else on the CPU."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
