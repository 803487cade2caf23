"""A checkpoint as a model that is ready to generate or to score."""

from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel

from megatron_chimed.checkpoints import resolve
from megatron_chimed.convert.architecture import from_megatron_args
from megatron_chimed.convert.family import Head
from megatron_chimed.convert.model import build_model, load_weights
from megatron_chimed.convert.plan import DTYPES
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError
from megatron_chimed.models.reward import HEAD


@dataclass(frozen=True)
class Loaded:
    """This rank's part of a model, on the device."""

    model: GPTModel
    head: Head
    num_ids: int
    """Ids that have a meaning; the padding of the vocabulary lies above."""

    max_positions: int


def load(checkpoint: Path, iteration: int | None, dtype: str) -> Loaded:
    """Read a checkpoint, the newest one or that of an iteration, with all ranks of torch.distributed as one
    tensor-parallel group.

    Raises InputError when it cannot be read, or the number of ranks does not divide the model.
    """
    source = TorchDistCheckpoint(resolve(checkpoint, iteration))
    head = "reward" if HEAD in source.tensors else "lm"
    architecture = from_megatron_args(source.args(), head, str(source.folder))
    ranks = torch.distributed.get_world_size()
    for name in ("heads", "groups", "ffn"):
        number = getattr(architecture.sizes, name)
        if number % ranks:
            raise InputError(f"{source.folder}: {ranks} tensor-parallel ranks do not divide its {number} {name}")
    model = build_model(architecture, DTYPES[dtype])
    load_weights(model, source.folder)
    return Loaded(model.cuda(), head, architecture.sizes.vocab, architecture.max_positions)
