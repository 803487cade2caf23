"""Open an engine by its name: the one place that reads ``KIND:PLACE``. A kind's libraries come with its engine."""

from collections.abc import Sequence

from megatron_chimed.checkpoints import split_adapter
from megatron_chimed.convert.stored import is_peft_folder
from megatron_chimed.convert.tokenizer_files import checkpoint_tokenizer
from megatron_chimed.errors import InputError
from megatron_chimed.inference.engine import Engine
from megatron_chimed.text.tokenizer import Tokenizer, load_tokenizer
from megatron_chimed.text.tokenizer_folder import has_tokenizer

__all__ = ["KINDS", "Engine", "kinds_text", "open_engine", "split_name", "tokenizer_of"]

KINDS = {"hf": "DIR", "vllm": "DIR", "megatron": "DIR", "openai": "MODEL"}


def kinds_text(kinds: Sequence[str] = tuple(KINDS)) -> str:
    """``hf:DIR, vllm:DIR or megatron:DIR``, for a message or a help text."""
    names = [f"{kind}:{KINDS[kind]}" for kind in kinds]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def split_name(name: str, kinds: Sequence[str] = tuple(KINDS), flag: str = "--model") -> tuple[str, str]:
    """(kind, place) of an engine's name; the place of hf and megatron may be BASE+ADAPTER. flag: what gives it, for
    messages.

    Raises InputError for another kind than these, a folder that is not there, or one that holds no such model.
    """
    kind, _, place = name.partition(":")
    if kind not in kinds or not place:
        raise InputError(f"{flag} {name}: expected {kinds_text(kinds)}")
    if KINDS[kind] == "DIR":
        _check_folders(kind, place, f"{flag} {name}")
    return kind, place


def _check_folders(kind: str, place: str, what: str) -> None:
    """Raise InputError where the folder of a model, or those of base and adapter, are not there or hold none."""
    folder, base = split_adapter(place)
    for one in filter(None, (folder, base)):
        if not one.is_dir():
            raise InputError(f"{what}: {one} is no folder")
    if kind == "megatron":
        return
    if kind == "vllm" and base is not None:
        raise InputError(f"{what}: vllm takes one folder; merge the two, or let vllm serve --enable-lora serve them")
    if base is None and is_peft_folder(folder) and not (folder / "config.json").is_file():
        raise InputError(f"{what}: {folder} holds adapters; give {kind}:BASE+{folder}")
    if base is not None and not is_peft_folder(folder):
        raise InputError(f"{what}: {folder} holds no adapter_config.json; expected adapters of PEFT")
    if not ((base or folder) / "config.json").is_file():
        raise InputError(f"{what}: {base or folder} holds no config.json; expected a Hugging Face folder")


def tokenizer_of(name: str, given: str | None) -> Tokenizer:
    """The tokenizer of an engine of this name: that of the folder, or of a Megatron checkpoint the one given.

    Raises InputError.
    """
    kind, place = split_name(name, ("hf", "vllm", "megatron"))
    if kind != "megatron":
        folder, base = split_adapter(place)
        return load_tokenizer(folder if base is None or has_tokenizer(folder) else base)
    if given is None:
        raise InputError(f"--model {name}: give the checkpoint's tokenizer, --tokenizer MODEL_OR_FOLDER")
    return checkpoint_tokenizer(given)


def open_engine(
    name: str,
    *,
    flag: str = "--model",
    head: str = "lm",
    iteration: int | None = None,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    dtype: str = "auto",
    batch_size: int = 16,
    base_url: str | Sequence[str] | None = None,
    concurrency: int = 8,
    requests_per_minute: float = 0.0,
    progress: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Engine:
    """Open the engine of a name; it ends with its `with` block, or with this process.

    flag: what gives the name, for messages. head: lm or reward, what the model must have. iteration: of megatron, None
    for the newest. tensor_parallel: ranks of megatron and vllm; data_parallel: copies of the model, in vllm. dtype:
    float32 or bfloat16; "auto" is that of the weights, and float32 for megatron. batch_size: sequences that megatron
    computes at once. base_url, concurrency, requests_per_minute: of the server behind openai, or of
    several. tokenizer: of the texts; ids that it lacks are then never sampled (openai: the server's affair).

    Raises InputError.
    """
    kind, place = split_name(name, flag=flag)
    if kind == "openai":
        from megatron_chimed.inference.openai_engine import OpenAIEngine

        return OpenAIEngine(place, base_url, concurrency=concurrency, requests_per_minute=requests_per_minute)
    if kind == "vllm":
        from megatron_chimed.inference.vllm_engine import VllmEngine

        more = {"tensor_parallel": tensor_parallel, "data_parallel": data_parallel, "dtype": dtype}
        engine = VllmEngine(place, head=head, **more)
    elif kind == "hf":
        from megatron_chimed.inference.hf_engine import HuggingFaceEngine

        engine = HuggingFaceEngine(place, dtype, head=head)
    else:
        from megatron_chimed.inference.megatron_engine import MegatronEngine

        more = {"tensor_parallel": tensor_parallel, "dtype": "float32" if dtype == "auto" else dtype}
        engine = MegatronEngine(place, iteration=iteration, batch_size=batch_size, progress=progress, **more)
    return _checked(engine, place, head, tokenizer)


def _checked(engine: Engine, place: str, head: str, tokenizer: Tokenizer | None) -> Engine:
    """The engine, which now samples ids of the tokenizer alone; or close it and raise InputError where the model has
    another head, or fewer ids than the tokenizer."""
    try:
        engine.check_head(place, head)
        if tokenizer is not None:
            if (size := tokenizer.vocab_size) > engine.num_ids:
                raise InputError(f"the tokenizer has {size} ids, the model {engine.num_ids}; they do not fit")
            engine.sampled_ids = size
    except InputError:
        engine.close()
        raise
    return engine
