"""What --model names: hf:DIR, vllm:DIR, megatron:DIR or openai:MODEL, with a hash of all that its answers depend on.

Backends are imported and made only when an answer is missing, so a report over finished answers needs no model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoints import resolve
from megatron_chimed.convert.tokenizer_files import checkpoint_tokenizer
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import sha256_file, sha256_json
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

KINDS = "hf:DIR, vllm:DIR, megatron:DIR or openai:MODEL"


@dataclass(frozen=True)
class ModelOptions:
    """How a model is run. tokenizer: of a megatron: checkpoint; iteration: None for the newest; dtype: "auto" is that
    of the weights for hf: and float32 for megatron:; base_url: of openai:."""

    tokenizer: str | None = None
    iteration: int | None = None
    tensor_parallel: int = 1
    batch_size: int = 8
    dtype: str = "auto"
    base_url: str | None = None


@dataclass(frozen=True)
class Model:
    """name: as given; identity: a JSON object that tells models and settings apart; make: makes the backend."""

    name: str
    identity: dict[str, Any]
    make: Callable[[], Any]
    likelihood: bool = True


def open_model(name: str, options: ModelOptions, template: Template, label: str | None = None) -> Model:
    """The model of a --model flag, under a label of its own or that flag.

    Raises InputError for an unknown kind or a folder that holds no model.
    """
    kind, colon, place = name.partition(":")
    openers = {"hf": _hugging_face, "vllm": _vllm, "megatron": _megatron, "openai": _chat}
    if kind not in openers or not colon or not place:
        raise InputError(f"--model {name}: expected {KINDS}")
    model = openers[kind](name, place, options, template)
    return replace(model, name=label) if label else model


def _hugging_face(name: str, place: str, options: ModelOptions, template: Template) -> Model:
    folder = Path(place)
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {name}: {folder} holds no config.json; expected a Hugging Face folder")

    def make() -> Any:
        from megatron_chimed.evaluation.backends.hf_model import HuggingFaceModel

        return HuggingFaceModel(folder, template, batch_size=options.batch_size, dtype=options.dtype)

    files = [path for path in folder.iterdir() if path.is_file() and path.suffix in (".json", ".safetensors", ".bin")]
    return Model(name, _identity(files, template, load_tokenizer(folder).fingerprint, options.dtype), make)


def _vllm(name: str, place: str, options: ModelOptions, template: Template) -> Model:
    model = _hugging_face(name, place, options, template)

    def make() -> Any:
        from megatron_chimed.evaluation.backends.engine_model import EngineModel
        from megatron_chimed.inference.vllm_engine import VllmEngine

        engine = VllmEngine(Path(place), tensor_parallel=options.tensor_parallel, dtype=options.dtype)
        return EngineModel(engine, load_tokenizer(place), template)

    return replace(model, identity=model.identity | {"backend": "vllm"}, make=make)


def _megatron(name: str, place: str, options: ModelOptions, template: Template) -> Model:
    folder, source = Path(place), options.tokenizer
    if source is None:
        raise InputError(f"--model {name}: give the checkpoint's tokenizer, --tokenizer MODEL_OR_FOLDER")
    tokenizer = checkpoint_tokenizer(source)
    iteration = resolve(folder, options.iteration)
    dtype = "float32" if options.dtype == "auto" else options.dtype

    def make() -> Any:
        from megatron_chimed.evaluation.backends.engine_model import EngineModel
        from megatron_chimed.inference.client import Engine

        engine = Engine(
            folder,
            iteration=options.iteration,
            tensor_parallel=options.tensor_parallel,
            dtype=dtype,
            batch_size=options.batch_size,
            progress=False,
        )
        return EngineModel(engine, tokenizer, template)

    return Model(name, _identity(list(iteration.iterdir()), template, tokenizer.fingerprint, dtype), make)


def _chat(name: str, place: str, options: ModelOptions, template: Template) -> Model:
    from megatron_chimed.api.client import OPENAI_URL, ChatApi

    base_url = options.base_url or OPENAI_URL
    api = ChatApi(place, base_url)

    def make() -> Any:
        from megatron_chimed.evaluation.backends.chat_model import ChatModel

        return ChatModel(api)

    return Model(name, {"model": place, "base_url": base_url}, make, likelihood=False)


def _identity(files: list[Path], template: Template, tokenizer: str, dtype: str) -> dict[str, Any]:
    """Hashes of weights, template and tokenizer."""
    weights = {path.name: sha256_file(path) for path in sorted(files)}
    return {
        "weights": sha256_json(weights),
        "template": template.fingerprint,
        "tokenizer": tokenizer,
        "dtype": dtype,
    }
