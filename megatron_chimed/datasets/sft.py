"""Fine-tuning samples from packed rows, on Megatron's dataset builder: every epoch its own order, without an end.

The order of an epoch depends on (seed, epoch) alone, so that a longer run repeats a shorter one and goes on from there.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from megatron_chimed.datasets import rows
from megatron_chimed.datasets.blend import StreamBuilder, raise_on_every_rank
from megatron_chimed.datasets.packed import PackedRows, row_arrays
from megatron_chimed.errors import InputError


@dataclasses.dataclass
class SftDatasetConfig(BlendedMegatronDatasetConfig):
    """Megatron's dataset settings, whose prefixes are folders of packed rows, and these."""

    isolate_instances: bool = True
    """Positions restart with each instance, for attention that never leaves it (cu_seqlens)."""

    vocab_size: int = 0
    """Ids of the model: rows that were tokenized for more are refused."""

    sources: tuple[str, ...] = ()
    """Names of the sources of all folders; a sample's `source` numbers them."""

    min_cached_entries: int = 100_000
    """A blend of fewer samples is computed anew and not kept in path_to_cache."""


class SftDataset(MegatronDataset):
    """Rows of one split of one packed folder.

    Each is a dict of tensors of S = sequence_length elements: tokens int64, labels int64 (the next token of the same
    instance), loss_mask float32 (1 where that label is to be learnt), position_ids int64, and source int64: number of
    the instance's source, -1 in the padding at the row's end.
    """

    def __init__(
        self, dataset: PackedRows, dataset_path: str, indices: np.ndarray, num_samples: int | None,
        index_split: Split, config: SftDatasetConfig
    ) -> None:  # fmt: skip
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        if num_samples is None:
            self.num_samples = len(indices)
        numbers = [config.sources.index(name) for name in dataset.sources]
        self._source_numbers = np.array([*numbers, -1], np.int64)  # -1, the padding, is the last
        self._epoch = (-1, np.zeros(0, np.int64))

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: PackedRows) -> int:
        """Rows of a folder."""
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: SftDatasetConfig) -> PackedRows:
        """Open a folder. Raises InputError if it is damaged, or packed for other rows or a larger vocabulary."""
        return open_rows(dataset_path, config.sequence_length, config.vocab_size)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < 0 or not len(self.indices):
            raise IndexError(index)
        epoch, place = divmod(int(index), len(self.indices))
        if self._epoch[0] != epoch:
            seed = self.config.random_seed
            self._epoch = (epoch, rows.permutation(len(self.indices), seed, epoch, rows.SAMPLE_ORDER))
        row = int(self.indices[self._epoch[1][place]])
        arrays = row_arrays(self.dataset, row)
        arrays["source"] = self._source_numbers[arrays["source"]]
        if not self.config.isolate_instances:
            arrays["position_ids"] = np.arange(len(arrays["tokens"]))
        return {name: torch.from_numpy(values) for name, values in arrays.items()}


def open_rows(folder: str, sequence_length: int, vocab_size: int) -> PackedRows:
    """Packed rows that fit a training. Raises InputError if they do not."""
    packed = PackedRows(folder)
    if packed.sequence_length != sequence_length:
        raise InputError(
            f"{folder}: packed in rows of {packed.sequence_length} tokens, --seq-length is {sequence_length}; "
            "pack again with tools/pack_sft.py --sequence-length, or train with that length"
        )
    ids = packed.manifest.get("vocab_size", 0)
    if ids > vocab_size:
        raise InputError(
            f"{folder}: tokenized with {ids} ids, but the model has {vocab_size}; pack with the model's tokenizer, "
            "or give the model's --vocab-size"
        )
    return packed


def build_sft_datasets(config: SftDatasetConfig, num_samples: tuple[int, int, int]) -> tuple[Dataset | None, ...]:
    """Build train, valid and test sets of at least `num_samples` each; None for 0, or for a split without a share.

    Call it on all ranks, or without torch.distributed. Folders without weights are mixed by their numbers of rows.
    Raises InputError, on all ranks if on one, before anything is built.
    """
    folders = {folder: None for prefixes, _ in _blends(config) for folder in prefixes}
    problems = [] if folders else ["no packed rows given; name at least one folder of tools/pack_sft.py"]
    for folder in folders:
        try:
            folders[folder] = open_rows(folder, config.sequence_length, config.vocab_size)
        except InputError as error:
            problems.append(str(error))
    raise_on_every_rank(problems)
    config = dataclasses.replace(
        config,
        sources=tuple(dict.fromkeys(name for packed in folders.values() for name in packed.sources)),
        blend=config.blend and _with_weights(config.blend, folders),
        blend_per_split=config.blend_per_split and [_with_weights(blend, folders) for blend in config.blend_per_split],
    )
    built = StreamBuilder(SftDataset, list(num_samples), lambda: True, config).build()
    return tuple(dataset if wanted else None for dataset, wanted in zip(built, num_samples, strict=True))


def sources_of(datasets: Sequence[Dataset | None]) -> tuple[str, ...]:
    """Names of the sources that `source` numbers, the same in all datasets of one call of `build_sft_datasets`."""
    return next(dataset.config.sources for dataset in datasets if dataset is not None)


def _blends(config: SftDatasetConfig) -> list[tuple[list[str], list[float] | None]]:
    """(folders, weights) of all splits."""
    return [blend for blend in (config.blend, *(config.blend_per_split or [])) if blend and blend[0]]


def _with_weights(blend, folders: dict[str, PackedRows]) -> tuple[list[str], list[float] | None] | None:
    """Weights by rows where none are given."""
    prefixes, weights = blend or ([], None)
    if len(prefixes) > 1 and weights is None:
        weights = [float(len(folders[folder])) for folder in prefixes]
    return blend and (prefixes, weights)
