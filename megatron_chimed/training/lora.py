"""Train adapters by Megatron's trainer: the base is loaded first, by its hash; a checkpoint holds the adapters alone.

With trainer.py, patches.py, saving.py and supervision.py an importer of megatron.training.
"""

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from megatron.core.utils import unwrap_model
from megatron.training import checkpointing, training

from megatron_chimed import checkpoints
from megatron_chimed.config import Located
from megatron_chimed.convert.lora import KEY, Lora, hash_on_one_rank, of_args
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError
from megatron_chimed.models.lora import trained_weights
from megatron_chimed.models.options import LoraOptions
from megatron_chimed.training.runlog import log_rank0

MAY_CHANGE = ("dropout", "seed")
"""Settings that a run may have otherwise than the adapters that it starts from: they change no result of these."""


def base_of(settings: Mapping[str, Located], args: argparse.Namespace, options: LoraOptions) -> str:
    """The folder of the base: what is given as --load, or the base of the adapters there, which BASE+ADAPTER names; of
    a run that continues without it the one that its checkpoint names.

    settings: Megatron's as given. Raises InputError when there is none, and for adapters of other settings.
    """
    given = next((settings[key] for key in ("load", "pretrained-checkpoint") if key in settings), None)
    folder, named = checkpoints.split_adapter(str(given.value)) if given else (None, None)
    places = [str(one) for one in (args.load, folder) if one]
    if not places:
        raise InputError("lora: no base is given; give --load with the checkpoint whose weights stay as they are")
    found = [_stored(place) for place in places]
    for place, stored in zip(places, found, strict=True):
        if stored is not None:
            _check_same(stored.options, options, place)
    if named is not None and found[-1] is None:
        raise InputError(f"--load {given.value}: {folder} holds a whole model, no adapters; give one of the two")
    base = places[-1] if found[-1] is None else str(named or found[-1].base)
    if not Path(base).is_dir():
        raise InputError(f"{places[-1]}: its base {base} is not there; give its place, --load BASE+ADAPTER")
    checkpoints.require_loadable(base)  # upstream would start from random weights
    return base


def _stored(folder: str) -> Lora | None:
    """What a checkpoint says of its adapters; None for a whole model. Raises InputError."""
    place = checkpoints.resolve(folder)
    return of_args(TorchDistCheckpoint(place).args, str(place))


def _check_same(stored: LoraOptions, given: LoraOptions, where: str) -> None:
    """Raise InputError where adapters were trained with other settings."""
    differ = [
        f"{name} {getattr(stored, name)}, now {getattr(given, name)}"
        for name in vars(stored)
        if name not in MAY_CHANGE and _sorted(getattr(stored, name)) != _sorted(getattr(given, name))
    ]
    if differ:
        raise InputError(
            f"{where}: its adapters were trained with {'; '.join(differ)}; keep their settings, or start over the "
            "merged model (chimed convert megatron-to-hf --merge)"
        )


def _sorted(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value


def install(options: LoraOptions, base: str) -> None:
    """Let the trainer load the base, and then the adapters, if --load has some. After all other patches of loading."""
    original = training.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(ddp_model, optimizer, scheduler, *args, load_arg="load", **kwargs):
        settings, parts = training.get_args(), unwrap_model(ddp_model)
        folder = checkpointing.get_load_checkpoint_path_by_args(settings, load_arg)
        stored = of_args(TorchDistCheckpoint(folder).args, folder)
        sha256 = hash_on_one_rank(TorchDistCheckpoint(checkpoints.resolve(base)))
        if stored is not None and stored.sha256 != sha256:
            raise InputError(
                f"{folder}: its adapters belong to another base than {base}: the weights there have the hash "
                f"{sha256[:12]}, expected {stored.sha256[:12]}; give the base of the training as --load"
            )
        setattr(settings, KEY, Lora(options, base, sha256).to_args())
        kept = {name: getattr(settings, name) for name in (load_arg, "finetune", "ckpt_step")}
        vars(settings).update({load_arg: base, "finetune": True, "ckpt_step": None})
        for part in parts:
            part.part = "base"
        result = original(ddp_model, None, None, *args, load_arg=load_arg, **kwargs)
        vars(settings).update(kept)
        for part in parts:
            part.part = "adapters"
        if stored is not None:
            result = original(ddp_model, optimizer, scheduler, *args, load_arg=load_arg, **kwargs)
        elif optimizer is not None and (settings.bf16 or settings.fp16):
            optimizer.reload_model_params()  # the base may have had a reward model's head
        _say_what_is_trained(parts, optimizer)
        return result

    training.load_checkpoint = load_checkpoint


def _say_what_is_trained(parts: list[torch.nn.Module], optimizer) -> None:
    """Print the weights of this rank that are trained, and the bytes that its optimizer keeps of them."""
    trained = sum(weight.numel() for part in parts for _, weight in trained_weights(part))
    held = sum(weight.numel() for part in parts for weight in part.parameters())
    line = f"LoRA trains {trained:,} of the {held:,} weights of a rank"
    if optimizer is not None:
        inner = getattr(optimizer, "chained_optimizers", [optimizer])
        kept = [weight for one in inner for group in one.param_groups for weight in group["params"]]
        shares = sum(weight.numel() * weight.element_size() for weight in kept)
        line += f"; its optimizer keeps {shares:,} bytes of them, and twice as many of moments"
    log_rank0(line)
