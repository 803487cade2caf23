"""What --model names: hf:DIR or megatron:DIR, opened to be talked to."""

from pathlib import Path
from typing import Any

from megatron_chimed.convert.tokenizer_files import checkpoint_tokenizer
from megatron_chimed.errors import InputError
from megatron_chimed.inference.client import Engine
from megatron_chimed.text.tokenizer import Tokenizer, load_tokenizer

KINDS = "hf:DIR or megatron:DIR"


def split_name(name: str) -> tuple[str, Path]:
    """(kind, folder) of a --model flag. Raises InputError for another kind or a folder that is not there."""
    kind, _, place = name.partition(":")
    if kind not in ("hf", "megatron") or not place:
        raise InputError(f"--model {name}: expected {KINDS}")
    if not Path(place).is_dir():
        raise InputError(f"--model {name}: {place} is no folder")
    if kind == "hf" and not (Path(place) / "config.json").is_file():
        raise InputError(f"--model {name}: {place} holds no config.json; expected a Hugging Face folder")
    return kind, Path(place)


def open_model(
    name: str,
    *,
    tokenizer: str | None = None,
    iteration: int | None = None,
    tensor_parallel: int = 1,
    dtype: str = "auto",
) -> tuple[Any, Tokenizer]:
    """(a `conversation.Model` with `close`, its tokenizer).

    tokenizer, iteration, tensor_parallel: of a megatron: checkpoint. dtype: "auto" is that of the weights for hf: and
    float32 for megatron:. Raises InputError where the folder holds no language model, or another one than the
    tokenizer's.
    """
    kind, folder = split_name(name)
    if kind == "hf":
        from megatron_chimed.inference.hf_engine import HuggingFaceStream

        ids = load_tokenizer(folder)
        model = HuggingFaceStream(folder, dtype)
    else:
        if tokenizer is None:
            raise InputError(f"--model {name}: give the checkpoint's tokenizer, --tokenizer MODEL_OR_FOLDER")
        ids = checkpoint_tokenizer(tokenizer)
        model = Engine(
            folder,
            iteration=iteration,
            tensor_parallel=tensor_parallel,
            dtype="float32" if dtype == "auto" else dtype,
            batch_size=1,
            progress=False,
        )
    try:
        if kind == "megatron" and model.head != "lm":
            raise InputError(f"--model {name}: a reward model, which does not answer; give a language model")
        if ids.vocab_size > model.num_ids:
            raise InputError(f"the tokenizer has {ids.vocab_size} ids, the model {model.num_ids}; they do not fit")
    except InputError:
        model.close()
        raise
    return model, ids
