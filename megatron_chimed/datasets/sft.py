"""Fine-tuning samples from packed dialogues."""

import dataclasses
from functools import cached_property

import numpy as np

from megatron_chimed.datasets.packed_dataset import PackedDataset, PackedDatasetConfig
from megatron_chimed.packing.packed_rows import row_arrays


@dataclasses.dataclass
class SftDatasetConfig(PackedDatasetConfig):
    """Settings of every packed dataset, and this."""

    isolate_instances: bool = True
    """Positions restart with each instance, for attention that never leaves it (cu_seqlens)."""


class SftDataset(PackedDataset):
    """Rows of one split of one packed folder.

    Each is a dict of tensors of S = sequence_length elements: tokens int64, labels int64 (the next token of the same
    instance), loss_mask float32 (1 where that label is to be learnt), position_ids int64, and source int64: number of
    the instance's source in config.sources, -1 in the padding at the row's end, -2 in a blank row.
    """

    made_by = "tools/pack_sft.py"
    packer = "chimed pack sft"
    blank = {"loss_mask": 0, "source": -2}

    @cached_property
    def _source_numbers(self) -> np.ndarray:
        """The folder's numbers of sources to those of config.sources, [sources + 1]; the last is for padding, -1."""
        return np.array([*map(self.config.sources.index, self.dataset.sources), -1], np.int64)

    def sample(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of one row, [S] each: two examples of 3 and 2 tokens whose last token is learnt give

        position_ids [0, 1, 2, 0, 1], loss_mask [0, 1, 0, 1, 0] (at the token before), source [0, 0, 0, 1, 1].
        """
        arrays = row_arrays(self.dataset, row)
        arrays["source"] = self._source_numbers[arrays["source"]]
        if not self.config.isolate_instances:
            arrays["position_ids"] = np.arange(len(arrays["tokens"]))
        return arrays
