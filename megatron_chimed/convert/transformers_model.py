"""Load a Hugging Face folder by transformers: the one place, with its one message."""

from pathlib import Path
from typing import Any

import torch

from megatron_chimed.errors import InputError


def load_model(folder: str | Path, kind: str, dtype: torch.dtype | str) -> torch.nn.Module:
    """A folder's model by a class of transformers, in evaluation mode, on one GPU where there is one, else on the CPU.

    kind: the class, AutoModelForCausalLM or AutoModelForSequenceClassification; dtype: "auto" is that of the weights.
    Raises InputError when transformers cannot load it, or the folder lacks a weight of such a model.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
    try:
        model, report = getattr(transformers, kind).from_pretrained(folder, **options)
    except Exception as error:  # transformers raises nearly anything on a broken folder
        raise InputError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from None
    if report["missing_keys"]:
        what = "language model" if kind == "AutoModelForCausalLM" else "reward model"
        raise InputError(f"{folder}: no {what}; {sorted(report['missing_keys'])[0]} is missing")
    return model.eval()


def to_device(model: torch.nn.Module) -> torch.nn.Module:
    """On one GPU where there is one, else on the CPU."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
