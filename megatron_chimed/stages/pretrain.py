"""Continued pre-training: next-token prediction on indexed corpora (paper, first training stage)."""

import functools
from collections.abc import Iterator, Mapping

import torch

from megatron_chimed.corpus.manifest import find_corpus_manifest
from megatron_chimed.datasets.pretrain import PretrainDatasetConfig, build_pretrain_datasets
from megatron_chimed.errors import InputError
from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.models.moe import MicroBatch, tell_routers
from megatron_chimed.stages.batch import on_device, refuse_joined_rows_in_a_pipeline
from megatron_chimed.stages.losses import masked_nll
from megatron_chimed.stages.options import PretrainConfig
from megatron_chimed.stages.stage import Batch, Data, DataRequest, Stage


def build_datasets(config: PretrainConfig, request: DataRequest) -> Data:
    """Train, valid and test over the corpora of --data-path.

    Raises InputError when a corpus fails its quick check or was tokenized for a larger vocabulary than the model's, and
    when rows that are joined to one packed row would not fit between pipeline stages.
    """
    if config.isolate_documents:
        refuse_joined_rows_in_a_pipeline("isolate_documents", request)
    check_vocabulary(request)
    dataset_config = PretrainDatasetConfig(
        **request.blend_settings(),
        mask_loss_across_documents=config.mask_loss_across_documents,
        isolate_documents=config.isolate_documents,
    )
    return Data(*build_pretrain_datasets(dataset_config, request.num_samples))


def check_vocabulary(request: DataRequest) -> None:
    """Raise InputError when a corpus may hold token ids that the model does not have."""
    for prefixes, _ in filter(None, [request.blend, *(request.blend_per_split or [])]):
        for prefix in prefixes:
            manifest_path, manifest = find_corpus_manifest(prefix)
            if manifest.get("vocab_size", 0) > request.vocab_size:
                raise InputError(
                    f"{manifest_path}: the corpus was tokenized with {manifest['vocab_size']} ids, but the model has "
                    f"{request.vocab_size}; train with the corpus's tokenizer, build the corpus with the model's, or "
                    "give the model's --vocab-size"
                )


def forward_step(config: PretrainConfig, batches: Iterator[Batch], model: torch.nn.Module, facts: Mapping) -> tuple:
    """One micro batch: tokens, labels, loss_mask, position_ids, all [B, S] -> (NLL per token, loss function).

    With isolated documents the rows are joined to one packed row [1, B * S] whose documents are given by cu_seqlens.
    """
    batch, packed = on_device(next(batches), isolated=config.isolate_documents)
    tell_routers(model, lambda: MicroBatch(batch["loss_mask"].count_nonzero()))
    nll = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"], packed_seq_params=packed)
    return nll, functools.partial(masked_nll, batch["loss_mask"])


STAGE = Stage("pretrain", build_datasets, build_gpt, forward_step, learns_text=True)
