"""Samples of preference optimization: packed ranked answers, and what a reference model thinks of each."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from torch.utils.data import Dataset

from megatron_chimed.datasets.packed_dataset import PackedDatasetConfig
from megatron_chimed.datasets.ranking import RankingDataset, answers_of, parts_of
from megatron_chimed.errors import InputError
from megatron_chimed.packing.packed_rows import PackedRows, row_arrays
from megatron_chimed.packing.reference import Reference, read_reference


class PreferenceDataset(RankingDataset):
    """Rows as a RankingDataset has them, and of S elements too: labels int64, the next token of the same segment;
    loss_mask float32, 1 where that is an answer's, EOS included; reference float64, at the token where an answer is
    scored the reference model's log-probability of it, in nats, and 0 elsewhere."""

    blank = RankingDataset.blank | {"loss_mask": 0}

    @classmethod
    def build_low_level_dataset(cls, dataset_path: str, config: PackedDatasetConfig) -> PackedRows:
        """Open a folder. Raises InputError as for ranked answers, and where its reference is missing or of others."""
        packed = super().build_low_level_dataset(dataset_path, config)
        read_reference(packed)
        return packed

    @cached_property
    def reference(self) -> Reference:
        """What was computed for the folder."""
        return read_reference(self.dataset)

    def sample(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of one row, [S] each: of an answer of two tokens behind a prompt of two, with log-probability -3,

        loss_mask [0, 1, 1, 0], reference [0, 0, 0, -3].
        """
        arrays, answers = row_arrays(self.dataset, row), answers_of(self.dataset, row)
        sample = self.of_answers(arrays, answers)
        size, segments = len(sample["tokens"]), self.dataset.segments(row)
        left = np.arange(size) - answers.of_tokens(answers.ends - answers.length, size)  # in an answer 0 or more
        in_answer = (left >= 0) & (answers.of_tokens(answers.length, size) > 0)
        sample["labels"] = arrays["labels"]
        sample["loss_mask"] = np.append(in_answer[1:], False).astype(np.float32)
        sample["reference"] = np.zeros(size)
        sample["reference"][answers.ends - 1] = self.reference.log_p[segments.start : segments.stop]
        return sample


def reference_of(datasets: Sequence[Dataset | None]) -> str:
    """The hash of the model whose log-probabilities all these datasets have. Raises InputError where there are two."""
    found = {part.reference.model: part for dataset in filter(None, datasets) for part in parts_of(dataset)}
    if len(found) > 1:
        (first, one), (second, other), *_ = found.items()
        raise InputError(
            f"the reference of {one.dataset_path} is of the model {first[:12]}, that of {other.dataset_path} of "
            f"{second[:12]}; compute both with one model (chimed reference)"
        )
    return next(iter(found))
