"""The first batch of a training on packed rows, straight from their files, and its loss by transformers."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from megatron_chimed.datasets.packed_dataset import PackedDatasetConfig, build_packed_datasets
from megatron_chimed.datasets.ranking import RankingDataset
from megatron_chimed.datasets.sft import SftDataset, SftDatasetConfig
from megatron_chimed.packing.packed_rows import PackedRows
from support.rankings import whole_answers


def ranked_answers(folder: Path, length: int, rows: int) -> list[list[tuple[np.ndarray, int, int]]]:
    """[rows][answers] (tokens, rank, group) of the first step of a training with seed 7 and split 80,20,0."""
    config = PackedDatasetConfig(
        random_seed=7, sequence_length=length, blend=([str(folder)], None), split="80,20,0", vocab_size=10**6
    )
    dataset = build_packed_datasets(RankingDataset, config, (rows, 0, 0))[0]
    packed, batch = PackedRows(folder), []
    whole = whole_answers(packed)
    for number in range(rows):
        tokens = dataset[number]["tokens"].numpy()
        for row in range(len(packed)):
            segments = packed.segments(row)
            start, end = (packed.segment_offsets[place] for place in (segments.start, segments.stop))
            if np.array_equal(tokens[: end - start], packed.tokens[start:end]):
                groups = dict.fromkeys(packed.arrays["segment_group"][segments.start : segments.stop].tolist())
                batch.append([(np.array(ids), rank, group) for group in groups for ids, rank in whole[group]])
                break
    return batch


@torch.no_grad()
def ranking_loss(hf: Path, batch: list[list[tuple[np.ndarray, int, int]]]) -> float:
    """Mean loss of all pairs of a batch, each answer by itself, pair by pair."""
    model, losses = AutoModelForSequenceClassification.from_pretrained(hf), []
    model.config.pad_token_id = None  # one answer at a time: its last token is scored
    for answers in batch:
        rewards = [model(torch.from_numpy(tokens)[None]).logits[0, 0].double() for tokens, _, _ in answers]
        for i, (_, rank, group) in enumerate(answers):
            for j, (_, other_rank, other_group) in enumerate(answers):
                if group == other_group and rank < other_rank:
                    losses.append(torch.log1p(torch.exp(rewards[j] - rewards[i])))
    return torch.stack(losses).mean().item()


@torch.no_grad()
def target_loss(hf: Path, folder: Path, length: int, rows: int) -> float:
    """Mean loss of the target tokens of the first step of a fine-tuning, each dialogue by itself."""
    config = SftDatasetConfig(
        random_seed=7, sequence_length=length, blend=([str(folder)], None), split="80,20,0", vocab_size=10**6
    )
    dataset = build_packed_datasets(SftDataset, config, (rows, 0, 0))[0]
    model, total, count = AutoModelForCausalLM.from_pretrained(hf), 0.0, 0.0
    for row in (dataset[number] for number in range(rows)):
        starts = [*np.flatnonzero(row["position_ids"] == 0), length]
        for start, end in zip(starts, starts[1:], strict=False):
            tokens, labels, mask = (row[name][start:end] for name in ("tokens", "labels", "loss_mask"))
            if mask.any():
                nll = torch.nn.functional.cross_entropy(model(tokens[None]).logits[0], labels, reduction="none")
                total, count = total + (nll * mask).sum().item(), count + mask.sum().item()
    return total / count
