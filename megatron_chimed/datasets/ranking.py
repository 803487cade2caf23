"""Reward-model samples from packed ranked answers."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from megatron_chimed.datasets.packed_dataset import PackedDataset, PackedDatasetConfig
from megatron_chimed.errors import InputError
from megatron_chimed.packing.packed_rows import PackedRows, row_arrays
from megatron_chimed.packing.ranking_worker import PAIRINGS


class RankingDataset(PackedDataset):
    """Rows of one split of one packed folder.

    Each is a dict of int64 tensors of S = sequence_length elements: tokens; position_ids, which restart with each
    answer, at 0 or behind a prompt that it shares (`models.branches`); and of the token at which an answer is scored
    (its EOS) rank, 0 is best; group, the number of its question in the row; length, tokens of the answer. The three are
    -1 at all other tokens.
    """

    made_by = "tools/pack_rewards.py"
    packer = "chimed pack rewards"
    blank = dict.fromkeys(("rank", "group", "length"), -1)

    @cached_property
    def num_ranks(self) -> int:
        """One more than the highest rank in the folder."""
        return 1 + int(self.dataset.arrays["segment_rank"].max())

    @classmethod
    def build_low_level_dataset(cls, dataset_path: str, config: PackedDatasetConfig) -> PackedRows:
        """Open a folder. Raises InputError as for every kind of rows."""
        packed = super().build_low_level_dataset(dataset_path, config)
        missing = {"segment_group", "segment_rank", "segment_answer"} - set(packed.arrays)
        if missing or packed.manifest.get("pairing") not in PAIRINGS:
            raise InputError(f"{dataset_path}: holds no {min(missing, default='pairing')}; pack again")
        return packed

    def sample(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of one row, int64 [S] each: two answers of 3 and 2 tokens, the first one better, give

        position_ids [0, 1, 2, 0, 1], rank [-1, -1, 0, -1, 1], group [-1, -1, 0, -1, 0], length [-1, -1, 3, -1, 2].
        """
        return self.of_answers(row_arrays(self.dataset, row), answers_of(self.dataset, row))

    @staticmethod
    def of_answers(arrays: dict[str, np.ndarray], answers: "Answers") -> dict[str, np.ndarray]:
        """The same of what is read of a row already."""
        sample = {"tokens": arrays["tokens"], "position_ids": arrays["position_ids"]}
        if answers.shared.any():
            sample["position_ids"] = arrays["position_ids"] + answers.of_tokens(answers.shared, len(arrays["tokens"]))
        for name in ("rank", "group", "length"):
            sample[name] = np.full(len(arrays["tokens"]), -1, np.int64)
            sample[name][answers.ends - 1] = getattr(answers, name)
        return sample


class Answers(NamedTuple):
    """The answers of a row, which are its segments; int64 [answers] each. starts and ends: of the segments in the row;
    shared: tokens in front of a segment that the question's first one has; rank; group: the question's number in the
    row; length: tokens of the answer, the segment's last ones."""

    starts: np.ndarray
    ends: np.ndarray
    shared: np.ndarray
    rank: np.ndarray
    group: np.ndarray
    length: np.ndarray

    def of_tokens(self, values: np.ndarray, size: int) -> np.ndarray:
        """Values [answers] for each token of a row of `size`, 0 in its padding."""
        found = np.repeat(values, self.ends - self.starts)
        return np.pad(found, (0, size - len(found)))


def answers_of(packed: PackedRows, row: int) -> Answers:
    """The answers of a row of ranked answers."""
    segments = packed.segments(row)
    here = slice(segments.start, segments.stop)
    rank, group, length = (
        packed.arrays[f"segment_{name}"][here].astype(np.int64) for name in ("rank", "group", "answer")
    )
    bounds = packed.segment_offsets[segments.start : segments.stop + 1] - packed.segment_offsets[segments.start]
    starts, ends = bounds[:-1], bounds[1:]
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    shared = np.zeros(len(rank), np.int64)
    if packed.manifest.get("shared_prompt"):
        prompts = (ends - starts - length)[first]  # tokens; the others of a question repeat the last one
        shared = prompts[group] - 1
        shared[first] = 0
    return Answers(starts, ends, shared, rank, group, length)


def num_ranks_of(datasets: Sequence[Dataset | None]) -> int:
    """How many ranks the answers of all these datasets have: one more than the highest."""
    return max(part.num_ranks for dataset in filter(None, datasets) for part in parts_of(dataset))


def pairings_of(dataset: Dataset) -> set[str]:
    """How the folders of a dataset pair their answers."""
    return {part.dataset.manifest["pairing"] for part in parts_of(dataset)}


def shares_prompts(dataset: Dataset) -> bool:
    """Whether answers of some folder of a dataset share the prompt of their question."""
    return any(part.dataset.manifest.get("shared_prompt") for part in parts_of(dataset))


def parts_of(dataset: Dataset) -> Sequence[RankingDataset]:
    """The datasets of a blend, or one alone."""
    return getattr(dataset, "datasets", [dataset])
