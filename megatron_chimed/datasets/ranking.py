"""Reward-model samples from packed ranked answers."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from torch.utils.data import Dataset

from megatron_chimed.datasets.packed_dataset import PackedDataset, PackedDatasetConfig
from megatron_chimed.errors import InputError
from megatron_chimed.packing.packed_rows import PackedRows, row_arrays
from megatron_chimed.packing.ranking_worker import PAIRINGS


class RankingDataset(PackedDataset):
    """Rows of one split of one packed folder.

    Each is a dict of int64 tensors of S = sequence_length elements: tokens; position_ids, which restart with each
    answer; and of the token at which an answer is scored (its EOS) rank, 0 is best; group, the number of its question
    in the row; length, tokens of the answer. The three are -1 at all other tokens.
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
        packed, segments = self.dataset, self.dataset.segments(row)
        arrays = row_arrays(packed, row)
        bounds = packed.segment_offsets[segments.start : segments.stop + 1]
        scored = bounds[1:] - bounds[0] - 1
        here = slice(segments.start, segments.stop)
        _, group = np.unique(packed.arrays["segment_group"][here], return_inverse=True)
        values = {"rank": packed.arrays["segment_rank"][here], "group": group}
        values["length"] = packed.arrays["segment_answer"][here]
        sample = {"tokens": arrays["tokens"], "position_ids": arrays["position_ids"]}
        for name, of_answers in values.items():
            sample[name] = np.full(len(arrays["tokens"]), -1, np.int64)
            sample[name][scored] = of_answers
        return sample


def num_ranks_of(datasets: Sequence[Dataset | None]) -> int:
    """How many ranks the answers of all these datasets have: one more than the highest."""
    return max(part.num_ranks for dataset in filter(None, datasets) for part in _parts(dataset))


def pairings_of(dataset: Dataset) -> set[str]:
    """How the folders of a dataset pair their answers."""
    return {part.dataset.manifest["pairing"] for part in _parts(dataset)}


def _parts(dataset: Dataset) -> Sequence[RankingDataset]:
    """The datasets of a blend, or one alone."""
    return getattr(dataset, "datasets", [dataset])
