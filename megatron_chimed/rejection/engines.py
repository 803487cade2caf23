"""Open the engine that the configuration of a loop names to sample answers."""

from dataclasses import asdict
from pathlib import Path

from megatron_chimed.checkpoints import split_adapter
from megatron_chimed.inference.open import Engine, open_engine
from megatron_chimed.inference.vllm_engine import require_vllm
from megatron_chimed.rejection.config import GeneratorOptions, Sampling
from megatron_chimed.steps import fingerprint
from megatron_chimed.text.tokenizer import Tokenizer


def open_generator(
    options: GeneratorOptions,
    checkpoint: str | Path,
    export: Path,
    tokenizer: Tokenizer,
    files: str | None = None,
) -> Engine:
    """The engine that samples ids of a tokenizer from a checkpoint folder, or BASE+ADAPTER. Raises InputError.

    export: where vllm finds a Hugging Face export, made if it is not there; a part that tells the checkpoint is added.
    files: the tokenizer's, which the export gets; those of the checkpoint's training if not given.
    """
    if options.engine == "openai":
        return open_engine(
            f"openai:{options.model}",
            flag="generator",
            base_url=options.base_url,
            concurrency=options.concurrency,
            requests_per_minute=options.requests_per_minute,
        )
    place = _export(Path(checkpoint), export, files) if options.engine == "vllm" else checkpoint
    return open_engine(
        f"{options.engine}:{place}",
        flag="generator",
        tensor_parallel=options.tensor_parallel,
        data_parallel=options.data_parallel,
        dtype=options.dtype,
        batch_size=options.batch_size,
        tokenizer=tokenizer,
    )


def open_reference(options: GeneratorOptions, checkpoint: str | Path) -> Engine:
    """The engine that tells how likely a checkpoint holds the answers that were sampled from it. Raises InputError."""
    more = {"tensor_parallel": options.tensor_parallel, "dtype": options.dtype, "batch_size": options.batch_size}
    return open_engine(f"megatron:{checkpoint}", flag="generator", progress=False, **more)


def _export(checkpoint: Path, export: Path, files: str | None) -> Path:
    """The Hugging Face export of a checkpoint; an export of what the folder held before has another name."""
    export = export.with_name(f"{export.name}-{fingerprint(split_adapter(checkpoint)[0])[:12]}")
    require_vllm()  # before hours of exporting
    if not export.exists():
        from megatron_chimed.convert.checkpoint import megatron_to_hf
        from megatron_chimed.convert.lora import holds_adapters

        megatron_to_hf(checkpoint, export, tokenizer=files, merge=holds_adapters(checkpoint))
    return export


def describe_sampling(options: GeneratorOptions, sampling: Sampling) -> dict:
    """What of the settings decides the answers; the rest decides how fast they come."""
    decisive = {name: getattr(options, name) for name in ("engine", "dtype")}
    if options.engine == "openai":
        urls = options.base_url  # servers of one model: the first stands for all, so that others may come and go
        decisive |= {"base_url": urls if isinstance(urls, str) else urls[0], "model": options.model}
    return decisive | asdict(sampling)
