"""Supervised fine-tuning on packed dialogues: the doctor's answers are learnt, nothing else (paper, second stage)."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from megatron_chimed.datasets.packed_dataset import build_packed_datasets, sources_of, template_of
from megatron_chimed.datasets.sft import SftDataset, SftDatasetConfig
from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.models.moe import MicroBatch, tell_routers
from megatron_chimed.models.options import ModelOptions
from megatron_chimed.models.prediction import last_predictions, record_argmax
from megatron_chimed.stages.batch import on_device, refuse_joined_rows_in_a_pipeline
from megatron_chimed.stages.losses import masked_nll, response_metrics
from megatron_chimed.stages.options import SftConfig
from megatron_chimed.stages.stage import Batch, Data, DataRequest, Loss, Stage


def build_datasets(config: SftConfig, request: DataRequest) -> Data:
    """Train, valid and test over the packed folders of --train-data-path and --valid-data-path, or of --data-path.

    Raises InputError when a folder is damaged or was packed for other rows or another vocabulary.
    """
    if config.isolate_instances:
        refuse_joined_rows_in_a_pipeline("isolate_instances", request)
    dataset_config = SftDatasetConfig(
        **request.blend_settings(),
        isolate_instances=config.isolate_instances,
        vocab_size=request.vocab_size,
    )
    datasets = build_packed_datasets(SftDataset, dataset_config, request.num_samples)
    return Data(*datasets, facts={"sources": sources_of(datasets), "template": template_of(datasets)})


def build_model(options: ModelOptions, config: Any, **placement: Any) -> torch.nn.Module:
    """The language model; its last pipeline stage remembers its predictions, for the accuracy."""
    model = build_gpt(options, config, **placement)
    if placement["post_process"]:
        record_argmax(model, placement["pg_collection"].tp)
    return model


def forward_step(config: SftConfig, batches: Iterator[Batch], model: torch.nn.Module, facts: Mapping) -> tuple:
    """One micro batch of tokens, labels, loss_mask, position_ids, source, all [B, S] -> (NLL per token, loss)."""
    batch, packed = on_device(next(batches), isolated=config.isolate_instances)
    tell_routers(model, lambda: MicroBatch(batch["loss_mask"].count_nonzero(), batch["source"] < 0))
    nll = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"], packed_seq_params=packed)
    sources = () if model.training else facts["sources"]
    return nll, functools.partial(loss, batch, last_predictions(model), sources)


def loss(batch: Batch, predicted: torch.Tensor | None, sources: Sequence[str], nll: torch.Tensor) -> Loss:
    """(sum, count, report) of a micro batch; predicted: [B, S] ids, on the last pipeline stage."""
    total, count, report = masked_nll(batch["loss_mask"], nll)
    more = response_metrics(batch["labels"], batch["loss_mask"], batch["source"], predicted, sources, nll)
    return total, count, report | more


STAGE = Stage("sft", build_datasets, build_model, forward_step, learns_text=True)
