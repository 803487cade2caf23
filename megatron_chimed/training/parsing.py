"""Parse settings by Megatron's own parser, and refuse what cannot work, before anything is written."""

import argparse
import inspect
import os
import sys
from typing import Any

from megatron.training import get_tokenizer
from megatron.training.arguments import add_megatron_arguments, parse_and_validate_args

from megatron_chimed import checkpoints
from megatron_chimed.backend import cpu
from megatron_chimed.config import Located
from megatron_chimed.errors import InputError
from megatron_chimed.models.gpt import has
from megatron_chimed.training import arguments, tracking
from megatron_chimed.training.defaults import defaults


class _Parser(argparse.ArgumentParser):
    """Megatron's usage text has 4,000 lines; the message alone is what helps."""

    def error(self, message: str):
        raise InputError(f"Megatron's arguments: {message}")


def parse(
    settings: dict[str, Located], more: dict[str, Any] | None = None
) -> tuple[argparse.Namespace, dict[str, Located]]:
    """Settings through Megatron's own parser and validation, into its global arguments.

    more: defaults of the stage. Returns the arguments and the settings with all defaults. Raises InputError.
    """
    parser = add_megatron_arguments(_Parser(allow_abbrev=False))
    settings = arguments.with_defaults(_resume(settings), defaults(settings) | (more or {}), parser)
    argv = arguments.to_argv(_without_base(settings), parser)
    parsed = parser.parse_args(argv)
    _refuse(parsed)
    tracking.refuse(parsed)
    if cpu.is_needed():
        cpu.refuse(parsed)
    elif parsed.transformer_impl == "transformer_engine" and not has("transformer_engine"):
        raise InputError("--transformer-impl transformer_engine: Transformer Engine is not installed; see extra `gpu`")
    # Upstream reads sys.argv and may end the process; so what can be refused in one line is refused above.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron asks for it when TP > 1, also on a CPU
    sys.argv = [sys.argv[0], *argv]
    try:
        args = parse_and_validate_args(args_defaults={})
        args.vocab_size = args.vocab_size or get_tokenizer().vocab_size  # checkpoints then know it without padding
        return args, settings
    except (AssertionError, ValueError, RuntimeError, OSError) as error:
        place = inspect.trace()[-1]
        reason = str(error) or f"{(place.code_context or ['?'])[0].strip()} (line {place.lineno} of its arguments)"
        raise InputError(f"Megatron refuses these arguments: {reason}") from None


def _refuse(parsed: argparse.Namespace) -> None:
    """Raise InputError for arguments that our loaders cannot serve, and for a start from nothing by mistake."""
    if parsed.dataloader_type != "external":
        raise InputError(f"--dataloader-type {parsed.dataloader_type}: the stages bring their own loader; leave it out")
    if parsed.full_validation or parsed.multiple_validation_sets:
        raise InputError("--full-validation is not supported; give --eval-iters (rows / global batch size)")
    if parsed.moe_use_upcycling:
        raise InputError("--moe-use-upcycling is not supported; start from a model with experts")
    if not (parsed.train_iters or parsed.train_samples):
        raise InputError("no length of the run is given; give --train-iters or --train-samples")
    if not parsed.micro_batch_size:
        raise InputError("no --micro-batch-size is given; give the rows that a rank takes at a time")
    decay = parsed.lr_decay_iters or parsed.train_iters
    if decay and parsed.lr_warmup_iters >= decay:
        raise InputError(
            f"--lr-warmup-iters {parsed.lr_warmup_iters}: the schedule ends after {decay} iterations; give fewer"
        )
    if parsed.eval_iters and not parsed.eval_interval:
        raise InputError("no --eval-interval is given; give the iterations between evaluations, or --eval-iters 0")
    for folder in (parsed.load, parsed.pretrained_checkpoint):
        if folder and folder != parsed.save:
            checkpoints.require_loadable(folder)


def _without_base(settings: dict[str, Located]) -> dict[str, Located]:
    """The same for Megatron, which loads of BASE+ADAPTER the adapters; the base is loaded by `training.lora`."""
    load = settings.get("load")
    if load is None:
        return settings
    return settings | {"load": Located(str(checkpoints.split_adapter(str(load.value))[0]), load.where)}


def _resume(settings: dict[str, Located]) -> dict[str, Located]:
    """The same command again continues: a checkpoint in --save wins over --load and what belongs to a first start."""
    save = settings.get("save")
    if save is None or not checkpoints.latest_iteration(str(save.value)):
        return settings
    first_start = ("load", "finetune", "pretrained-checkpoint", "no-load-optim", "no-load-rng")
    kept = {key: setting for key, setting in settings.items() if key not in first_start}
    return kept | {"load": Located(save.value, "checkpoint in --save")}
