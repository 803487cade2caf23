"""The first batch of a training on packed rows, straight from their files, and its losses by a model of
transformers, each text by itself."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

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


def pair_losses(model: torch.nn.Module, answers: list[tuple[np.ndarray, int, int]]) -> list[torch.Tensor]:
    """The loss of each pair of a row, float64 [] each, pair by pair, each answer by itself."""
    model.config.pad_token_id = None  # one answer at a time: its last token is scored
    rewards = [model(torch.from_numpy(tokens)[None]).logits[0, 0].double() for tokens, _, _ in answers]
    losses = []
    for i, (_, rank, group) in enumerate(answers):
        for j, (_, other_rank, other_group) in enumerate(answers):
            if group == other_group and rank < other_rank:
                losses.append(torch.log1p(torch.exp(rewards[j] - rewards[i])))
    return losses


def log_p(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The log-probability of an answer behind its prompt, by itself, float64 []."""
    tokens = torch.tensor([prompt + answer])
    logits = model(tokens).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(-1, tokens[0, len(prompt) :, None]).sum()


def instances(folder: Path, length: int, rows: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """[rows][instances] (tokens, mask) of the first step of a fine-tuning with seed 7 and split 80,20,0."""
    config = SftDatasetConfig(
        random_seed=7, sequence_length=length, blend=([str(folder)], None), split="80,20,0", vocab_size=10**6
    )
    dataset = build_packed_datasets(SftDataset, config, (rows, 0, 0))[0]
    packed, batch = PackedRows(folder), []
    places = [packed.segments(row) for row in range(len(packed))]
    texts = [packed.tokens[packed.segment_offsets[r[0]] : packed.segment_offsets[r[-1] + 1]] for r in places]
    for number in range(rows):
        tokens = dataset[number]["tokens"].numpy()
        row = next(i for i, text in enumerate(texts) if np.array_equal(tokens[: len(text)], text))
        bounds = [packed.segment_offsets[s : s + 2] for s in places[row]]
        batch.append([(packed.tokens[a:b].astype(np.int64), packed.loss_mask[a:b] == 1) for a, b in bounds])
    return batch


def target_losses(
    model: torch.nn.Module, row: list[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[torch.Tensor, int]]:
    """(summed loss, number) of the target tokens of each instance of a row, by itself, by transformers' own loss."""
    for tokens, mask in row:
        labels = torch.from_numpy(np.where(mask, tokens, -100))[None]
        yield model(torch.from_numpy(tokens)[None], labels=labels).loss * int(mask.sum()), int(mask.sum())
