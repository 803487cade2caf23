"""The reference of preference optimization must be of the model that the training starts from; a run keeps it."""

import argparse

from megatron_chimed import checkpoints
from megatron_chimed.convert import lora
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError

KEY = "chimed_reference"
"""Name in a checkpoint's arguments of the hash of the reference's model."""


def check_reference(args: argparse.Namespace, sha256: str) -> None:
    """Raise InputError where the data's reference, `sha256`, is not of the model that was loaded, or of a run that goes
    on not the one that it began with. args: after the checkpoint is loaded; every checkpoint then keeps the hash."""
    if args.fake_process_group:  # a dry run loads none
        return
    folder = args.load or args.pretrained_checkpoint
    if not folder:
        raise InputError("the dpo stage starts from a model; give --load with the one that chimed reference was given")
    source = TorchDistCheckpoint(checkpoints.resolve(folder, args.ckpt_step))
    began = getattr(source.args, KEY, None) if args.load == args.save else None
    found = began or lora.model_hash(source, lora.of_args(source.args, folder))
    if found != sha256:
        what = "the run began with the reference of" if began else f"{folder} holds"
        raise InputError(
            f"the data's reference is of the model {sha256[:12]}, and {what} the model {found[:12]}; compute it with "
            "chimed reference --model megatron: and the model that the training starts from"
        )
    setattr(args, KEY, sha256)
