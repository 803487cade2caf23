"""What the config.json of a Hugging Face folder says without its weights; no torch."""

from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json

PEFT_CONFIG = "adapter_config.json"
"""PEFT's settings of adapters, beside their weights."""

DTYPES = ("float32", "float16", "bfloat16")


def stored_dtype(folder: str | Path) -> str:
    """The type of the weights, float32, float16 or bfloat16; "auto" where the file does not tell. Raises InputError.

    For vLLM, whose own "auto" makes bfloat16 of float32.
    """
    config = _config(folder)
    name = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return name if name in DTYPES else "auto"


def is_peft_folder(folder: str | Path) -> bool:
    """Whether a folder holds adapters of PEFT."""
    return (Path(folder) / PEFT_CONFIG).is_file()


def peft_head(folder: str | Path) -> str:
    """lm, or reward for adapters that have a head of their own. Raises InputError."""
    settings = read_json(Path(folder) / PEFT_CONFIG)
    return "reward" if isinstance(settings, dict) and settings.get("task_type") == "SEQ_CLS" else "lm"


def stored_head(folder: str | Path) -> str:
    """lm, or reward for a model with one label. Raises InputError."""
    names = _config(folder).get("architectures") or [""]
    return "reward" if str(names[0]).endswith("ForSequenceClassification") else "lm"


def stored_labels(folder: str | Path) -> int:
    """How many numbers the head of a reward model gives. Raises InputError."""
    config = _config(folder)
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)


def _config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a mapping; take another copy")
    return config
