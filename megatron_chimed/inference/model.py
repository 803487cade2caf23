"""A checkpoint as a model that is ready to generate or to score."""

from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel

from megatron_chimed.checkpoints import resolve
from megatron_chimed.convert.megatron_args import read_megatron
from megatron_chimed.convert.model import build_model, load_weights
from megatron_chimed.convert.plan import DTYPES
from megatron_chimed.convert.sizes import Head
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError


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
    architecture = read_megatron(source)
    if problems := architecture.sizes.problems(torch.distributed.get_world_size()):
        raise InputError(f"{source.folder}: " + "; ".join(problems))
    model = build_model(architecture, DTYPES[dtype])
    load_weights(model, source.folder)
    return Loaded(model.cuda(), architecture.head, architecture.sizes.vocab, architecture.max_positions)
