"""A checkpoint as a model that is ready to generate or to score."""

from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel

from megatron_chimed.convert.lora import open_checkpoint
from megatron_chimed.convert.model import build_model, load_opened
from megatron_chimed.convert.plan import DTYPES
from megatron_chimed.convert.sizes import Head
from megatron_chimed.errors import InputError


@dataclass(frozen=True)
class Loaded:
    """This rank's part of a model, on the device."""

    model: GPTModel
    head: Head
    num_ids: int
    """Ids that have a meaning; the padding of the vocabulary lies above."""

    max_positions: int


def load(checkpoint: str | Path, iteration: int | None, dtype: str) -> Loaded:
    """Read a checkpoint, the newest one or that of an iteration, with all ranks of torch.distributed as one
    tensor-parallel group.

    Raises InputError when it cannot be read, or the number of ranks does not divide the model.
    """
    opened = open_checkpoint(checkpoint, iteration)
    architecture = opened.model
    if problems := architecture.sizes.problems(torch.distributed.get_world_size()):
        raise InputError(f"{opened.source.folder}: " + "; ".join(problems))
    model = build_model(architecture, DTYPES[dtype], lora=opened.lora and opened.lora.options)
    load_opened(model, opened)
    return Loaded(model.cuda(), architecture.head, architecture.sizes.vocab, architecture.max_positions)
