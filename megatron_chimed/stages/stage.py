"""A stage of the regime as one frozen record of hooks; the trainer knows stages only by it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Dataset

from megatron_chimed.config import Located
from megatron_chimed.stages.options import STAGES


@dataclass(frozen=True)
class DataRequest:
    """What the trainer tells a stage about the data that it needs, from Megatron's arguments."""

    num_samples: tuple[int, int, int]
    """Samples of train, valid and test."""

    sequence_length: int
    """Tokens per row."""

    micro_batch_size: int
    """Rows of a batch."""

    pipeline_parallel_size: int
    """Pipeline stages, which pass on activations of [sequence_length, micro_batch_size, hidden]."""

    transformer_impl: str
    """--transformer-impl: Transformer Engine's attention knows documents alone, no branches."""

    vocab_size: int
    """Ids of the model, without the padding, which is never learnt: every token id is below it."""

    seed: int
    """--seed."""

    blend: tuple[list[str], list[float] | None] | None
    """--data-path as (prefixes, weights)."""

    blend_per_split: list[tuple[list[str], list[float] | None] | None] | None
    """--train-data-path, --valid-data-path, --test-data-path likewise."""

    split: str | None
    """--split, such as "949,50,1"."""

    cache: str | None
    """--data-cache-path."""

    def blend_settings(self) -> dict[str, Any]:
        """What every dataset configuration of Megatron's blended builder takes, by its names."""
        return {
            "random_seed": self.seed,
            "sequence_length": self.sequence_length,
            "blend": self.blend,
            "blend_per_split": self.blend_per_split,
            "split": self.split,
            "path_to_cache": self.cache,
        }


@dataclass(frozen=True)
class Data:
    """The datasets of a run, each None where nothing is asked for, and what is known of all of them."""

    train: Dataset | None
    valid: Dataset | None
    test: Dataset | None

    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the stage's forward step needs beside the batches, such as the names of the sources."""


Batch = dict[str, torch.Tensor]
Loss = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Stage:
    """The hooks of one stage. No hook reads global arguments."""

    name: str
    """One of config.STAGES."""

    build_datasets: Callable[[Any, DataRequest], Data]
    """(config, request) -> the datasets; called on every rank."""

    build_model: Callable[..., torch.nn.Module]
    """(Megatron's model config, ModelOptions, placement as keywords) -> this rank's model; see models.gpt.build_gpt."""

    forward_step: Callable[[Any, Iterator[Batch], torch.nn.Module, Mapping], tuple[torch.Tensor, Callable[..., Loss]]]
    """(config, iterator of batches, model, facts of the data) -> (output, function of the output to (sum, count,
    report))."""

    schedule: Callable[[Any, dict[str, Located]], dict[str, Any]] = lambda config, settings: {}
    """(config, Megatron's settings as given) -> further settings, for what is not given: the length of the run, ..."""

    derive: Callable[[dict[str, float]], dict[str, float]] = dict
    """Means of the figures in an evaluation's report -> the figures that are logged."""

    learns_text: bool = False
    """Whether the report of its loss has "lm loss", of any one row too: validation sets by name and replay need it."""

    missing_keys: tuple[str, ...] = ()
    """Weights that another stage's checkpoint may lack; they are then initialized."""

    unexpected_keys: tuple[str, ...] = ()
    """Weights of such a checkpoint that are then left aside."""

    @property
    def config_class(self) -> type:
        """The dataclass of the ``chimed:`` block."""
        return STAGES[self.name]
