"""Models for lm-eval by the names of engines, with a hash of all that their answers depend on.

Backends are imported and made only when an answer is missing, so a report over finished answers needs no model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.api.servers import OPENAI_URL
from megatron_chimed.checkpoints import resolve, split_adapter
from megatron_chimed.inference.open import open_engine, split_name, tokenizer_of
from megatron_chimed.jsonl import sha256_file, sha256_json
from megatron_chimed.text.template import Template


@dataclass(frozen=True)
class EngineOptions:
    """How a model is run. tokenizer: of a megatron: checkpoint; iteration: None for the newest; dtype: "auto" is that
    of the weights for hf: and vllm:, float32 for megatron:; base_url: of openai:."""

    tokenizer: str | None = None
    iteration: int | None = None
    tensor_parallel: int = 1
    batch_size: int = 8
    dtype: str = "auto"
    base_url: str | None = None


@dataclass(frozen=True)
class EvaluatedModel:
    """name: as given; identity: a JSON object that tells models and settings apart; make: makes the backend."""

    name: str
    identity: dict[str, Any]
    make: Callable[[], Any]
    likelihood: bool = True


def open_model(name: str, options: EngineOptions, template: Template, label: str | None = None) -> EvaluatedModel:
    """The model of a --model flag, under a label of its own or that flag.

    Raises InputError for an unknown kind or a folder that holds no model.
    """
    kind, place = split_name(name)
    if kind == "openai":
        identity = {"model": place, "base_url": options.base_url or OPENAI_URL}
    elif kind == "megatron":
        tokenizer_of(name, options.tokenizer)  # a missing one is found before the hours of hashing
        folder, _ = split_adapter(place)  # of adapters, whose checkpoint has the hash of their base
        files = list(resolve(folder, options.iteration).iterdir())
        identity = _identity(files, name, template, options, "float32" if options.dtype == "auto" else options.dtype)
    else:
        there = (path for one in filter(None, split_adapter(place)) for path in one.iterdir() if path.is_file())
        files = [path for path in there if path.suffix in (".json", ".safetensors", ".bin")]
        identity = _identity(files, name, template, options, options.dtype)
        identity |= {"backend": "vllm"} if kind == "vllm" else {}

    def make() -> Any:
        tokenizer = None if kind == "openai" else tokenizer_of(name, options.tokenizer)
        engine = open_engine(
            name,
            iteration=options.iteration,
            tensor_parallel=options.tensor_parallel,
            dtype=options.dtype,
            batch_size=options.batch_size,
            base_url=options.base_url,
            tokenizer=tokenizer,
        )
        if kind == "openai":
            from megatron_chimed.evaluation.backends.chat_model import ChatModel

            return ChatModel(engine, template)
        if kind == "hf":
            from megatron_chimed.evaluation.backends.hf_model import HuggingFaceModel

            return HuggingFaceModel(engine, tokenizer, template, batch_size=options.batch_size)
        from megatron_chimed.evaluation.backends.engine_model import EngineModel

        return EngineModel(engine, tokenizer, template)

    return EvaluatedModel(label or name, identity, make, likelihood=kind != "openai")


def _identity(files: list[Path], name: str, template: Template, options: EngineOptions, dtype: str) -> dict[str, Any]:
    """Hashes of weights, template and tokenizer."""
    weights = {path.name: sha256_file(path) for path in sorted(files)}
    return {
        "weights": sha256_json(weights),
        "template": template.fingerprint,
        "tokenizer": tokenizer_of(name, options.tokenizer).fingerprint,
        "dtype": dtype,
    }
