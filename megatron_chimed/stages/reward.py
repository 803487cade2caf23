"""The reward model on ranked answers: every answer read once, compared within its question (paper, third stage)."""

import functools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import Dataset

from megatron_chimed.datasets.packed_dataset import PackedDatasetConfig, build_packed_datasets, template_of
from megatron_chimed.datasets.ranking import RankingDataset, num_ranks_of, pairings_of, shares_prompts
from megatron_chimed.errors import InputError
from megatron_chimed.models.moe import MicroBatch, tell_routers
from megatron_chimed.models.reward import HEAD, build_reward
from megatron_chimed.stages.batch import on_device, refuse_joined_rows_in_a_pipeline
from megatron_chimed.stages.losses import pairwise_ranking, ranked_pairs
from megatron_chimed.stages.options import RewardConfig
from megatron_chimed.stages.ranking_metrics import derive, report
from megatron_chimed.stages.schedule import by_epochs
from megatron_chimed.stages.stage import Batch, Data, DataRequest, Loss, Stage


def build_datasets(config: RewardConfig, request: DataRequest) -> Data:
    """Train, valid and test over the packed folders of --train-data-path and --valid-data-path, or of --data-path.

    Raises InputError when a folder is damaged, holds no ranked answers, or was packed for other rows or another
    vocabulary, and when folders pair their answers differently.
    """
    refuse_joined_rows_in_a_pipeline("the reward stage", request)
    dataset_config = PackedDatasetConfig(**request.blend_settings(), vocab_size=request.vocab_size)
    datasets = build_packed_datasets(RankingDataset, dataset_config, request.num_samples)
    refuse_branches(datasets, request)
    facts = {"pairing": the_pairing(datasets), "num_ranks": num_ranks_of(datasets), "template": template_of(datasets)}
    return Data(*datasets, facts=facts)


def the_pairing(datasets: Sequence[Dataset | None]) -> str:
    """How all these datasets pair their answers, one of PAIRINGS. Raises InputError where they differ."""
    pairings = sorted(set().union(*map(pairings_of, filter(None, datasets))))
    if len(pairings) > 1:
        raise InputError(f"folders of one run were packed with --pairing {' and '.join(pairings)}; choose one")
    return pairings[0]


def refuse_branches(datasets: Sequence[Dataset | None], request: DataRequest) -> None:
    """Raise InputError for rows whose answers share a prompt where the layers cannot read it once."""
    if request.transformer_impl == "transformer_engine" and any(map(shares_prompts, filter(None, datasets))):
        raise InputError(
            "these rows hold each prompt once, and --transformer-impl transformer_engine cannot read them; use "
            "--transformer-impl local, or pack again with chimed pack rewards --repeat-prompt"
        )


def forward_step(config: RewardConfig, batches: Iterator[Batch], model: torch.nn.Module, facts: Mapping) -> tuple:
    """One micro batch of the tensors of a RankingDataset, all [B, S] -> (reward at each token [1, B * S], loss)."""
    batch, packed = on_device(number_groups(next(batches)), isolated=True)
    tell_routers(model, lambda: micro_batch(batch, facts["pairing"]))
    rewards = model(batch["tokens"], batch["position_ids"], None, packed_seq_params=packed)
    num_ranks = None if model.training else facts["num_ranks"]
    return rewards, functools.partial(loss, config, batch, facts["pairing"], num_ranks)


def number_groups(batch: Batch) -> Batch:
    """A batch [B, S] in which groups of different rows have different numbers."""
    rows = torch.arange(len(batch["group"]))[:, None]
    return batch | {"group": batch["group"] + rows * batch["group"].size(1)}


def micro_batch(batch: Batch, pairing: str) -> MicroBatch:
    """The number of pairs of a joined row [1, B * S], and its padding."""
    scored = batch["rank"] >= 0
    better, _ = ranked_pairs(batch["rank"][scored], batch["group"][scored], pairing)
    return MicroBatch(torch.tensor(len(better), device=better.device), padding_of(batch))


def padding_of(batch: Batch) -> torch.Tensor:
    """The padding of a joined row, bool [1, B * S]: the documents in which nothing is scored."""
    scored, document = batch["rank"] >= 0, (batch["position_ids"] == 0).cumsum(-1)
    return ~torch.isin(document, document[scored])


def loss(config: RewardConfig, batch: Batch, pairing: str, num_ranks: int | None, rewards: torch.Tensor) -> Loss:
    """(sum [], number of pairs [], report) of a micro batch.

    batch: tensors [1, B * S] of a RankingDataset; rewards [1, B * S], of which those where rank >= 0 count. pairing:
    one of PAIRINGS; num_ranks: of all data, for the report of an evaluation, None in training.
    """
    scored = batch["rank"] >= 0
    rewards, rank, group = rewards[scored], batch["rank"][scored], batch["group"][scored]
    better, worse = ranked_pairs(rank, group, pairing)
    total, count = pairwise_ranking(
        rewards, rank, better, worse, margin=config.margin, center_rewards_coefficient=config.center_rewards_coefficient
    )
    right = (rewards[better] > rewards[worse]).sum()
    figures = {
        "ranking loss": torch.stack([total.detach(), count.to(total.dtype)]),
        "pair accuracy": torch.stack([right, count]).to(total.dtype),
    }
    if num_ranks is not None:
        figures |= report(rewards, rank, group, batch["length"][scored], num_ranks)
    return total, count, figures


STAGE = Stage(
    "reward",
    build_datasets,
    build_reward,
    forward_step,
    schedule=by_epochs,
    derive=derive,
    missing_keys=(HEAD,),
    unexpected_keys=("output_layer.weight",),
)
