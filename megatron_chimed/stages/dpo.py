"""Direct preference optimization on the ranked answers of the reward model; the reference is read, never computed."""

import functools
from collections.abc import Iterator, Mapping

import torch

from megatron_chimed.datasets.packed_dataset import PackedDatasetConfig, build_packed_datasets, template_of
from megatron_chimed.datasets.preferences import PreferenceDataset, reference_of
from megatron_chimed.datasets.ranking import num_ranks_of
from megatron_chimed.errors import InputError
from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.models.moe import MicroBatch, tell_routers
from megatron_chimed.stages.batch import on_device, refuse_joined_rows_in_a_pipeline
from megatron_chimed.stages.losses import ranked_pairs
from megatron_chimed.stages.options import DpoConfig
from megatron_chimed.stages.preferences import answer_log_p, pair_losses, plackett_luce, questions_of
from megatron_chimed.stages.ranking_metrics import derive, report
from megatron_chimed.stages.reward import number_groups, padding_of, refuse_branches, the_pairing
from megatron_chimed.stages.schedule import by_epochs
from megatron_chimed.stages.stage import Batch, Data, DataRequest, Loss, Stage


def build_datasets(config: DpoConfig, request: DataRequest) -> Data:
    """Train, valid and test over packed folders with their reference, as of the reward stage.

    Raises InputError as there, for a value that makes no sense, for a folder without its reference, and for folders
    whose references are of different models.
    """
    if wrong := config.problems():
        raise InputError("; ".join(wrong))
    refuse_joined_rows_in_a_pipeline("the dpo stage", request)
    dataset_config = PackedDatasetConfig(**request.blend_settings(), vocab_size=request.vocab_size)
    datasets = build_packed_datasets(PreferenceDataset, dataset_config, request.num_samples)
    refuse_branches(datasets, request)
    facts = {"pairing": the_pairing(datasets), "num_ranks": num_ranks_of(datasets), "template": template_of(datasets)}
    return Data(*datasets, facts=facts | {"reference": reference_of(datasets)})


def forward_step(config: DpoConfig, batches: Iterator[Batch], model: torch.nn.Module, facts: Mapping) -> tuple:
    """One micro batch of the tensors of a PreferenceDataset, all [B, S] -> (NLL of next tokens [1, B * S], loss)."""
    batch, packed = on_device(number_groups(next(batches)), isolated=True)
    tell_routers(model, lambda: MicroBatch(count(config, batch, facts["pairing"]), padding_of(batch)))
    nll = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"], packed_seq_params=packed)
    num_ranks = None if model.training else facts["num_ranks"]
    return nll, functools.partial(loss, config, batch, facts["pairing"], num_ranks)


def count(config: DpoConfig, batch: Batch, pairing: str) -> torch.Tensor:
    """What the loss of a micro batch is divided by: its pairs, or with Plackett-Luce its questions, int64 []."""
    scored = batch["rank"] >= 0
    rank, group = batch["rank"][scored], batch["group"][scored]
    found = ranked_pairs(rank, group, pairing)[0] if config.loss == "pairs" else list(questions_of(rank, group))
    return torch.tensor(len(found), device=rank.device)


def loss(config: DpoConfig, batch: Batch, pairing: str, num_ranks: int | None, nll: torch.Tensor) -> Loss:
    """(sum [], number of pairs or questions [], report) of a micro batch.

    batch: tensors [1, B * S] of a PreferenceDataset; nll [1, B * S]. pairing: one of PAIRINGS; num_ranks: of all data,
    for the report of an evaluation, None in training.
    """
    batch = {name: tensor.reshape(-1) for name, tensor in batch.items()}
    scored = batch["rank"] >= 0
    rank, group, length, reference = (batch[name][scored] for name in ("rank", "group", "length", "reference"))
    log_p = answer_log_p(nll.reshape(-1), batch["loss_mask"], scored)
    change = (log_p - reference) / (length if config.length_normalized else 1)
    rewards, per_token = config.beta * change, -log_p / length
    better, worse = ranked_pairs(rank, group, pairing)
    if config.loss == "pairs":
        losses = pair_losses(rewards, better, worse, config.label_smoothing)
        imitated = per_token[better]
    else:
        questions = list(questions_of(rank, group))
        losses = _stacked([plackett_luce(rewards, levels) for levels in questions], rewards)
        imitated = _stacked([per_token[levels[0]].mean() for levels in questions], rewards)
    total = (losses + config.sft_coefficient * imitated).sum()
    figures = _figures(rewards, log_p, better, worse)
    figures["KL estimate"] = (reference - log_p, length)  # in nats per token, where the reference wrote the answers
    counted = torch.tensor(len(losses), device=nll.device)
    sums = {"preference loss": torch.stack([total, counted.to(total.dtype)])}
    sums |= {name: torch.stack([values.sum(), counts.sum()]) for name, (values, counts) in figures.items()}
    if num_ranks is not None:
        sums |= report(rewards, rank, group, length, num_ranks)
    return total, counted, {name: values.detach().float() for name, values in sums.items()}


def _stacked(values: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Numbers as one tensor [n], of none too."""
    return torch.stack(values) if values else like[:0]


def _figures(rewards, log_p, better, worse) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{name: (values, counts)} of the pairs: their accuracy, margin, and likelihoods in nats."""
    margin = rewards[better] - rewards[worse]
    found = {
        "pair accuracy": (margin > 0).double(),
        "reward margin": margin,
        "log p of better": log_p[better],
        "log p of worse": log_p[worse],
    }
    return {name: (values, torch.ones_like(values)) for name, values in found.items()}


STAGE = Stage("dpo", build_datasets, build_gpt, forward_step, schedule=by_epochs, derive=derive)
