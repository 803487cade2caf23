"""Samples from packed rows, on Megatron's dataset builder: every epoch its own order, without an end.

The order of an epoch depends on (seed, epoch) alone, so that a longer run repeats a shorter one and goes on from there.
An evaluation that asks for more samples than its set has rows gets each row once, and then blank ones.
"""

import abc
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from megatron_chimed.datasets import rows
from megatron_chimed.datasets.blend import StreamBuilder, raise_on_every_rank
from megatron_chimed.errors import InputError
from megatron_chimed.packing.packed_rows import PackedRows


@dataclasses.dataclass
class PackedDatasetConfig(BlendedMegatronDatasetConfig):
    """Megatron's dataset settings, whose prefixes are folders of packed rows, and these."""

    vocab_size: int = 0
    """Ids of the model: rows that were tokenized for more are refused."""

    sources: tuple[str, ...] = ()
    """Names of the sources of all folders; filled in when datasets are built."""

    template: dict[str, Any] | None = None
    """The template of all folders, as their manifests have it; likewise."""

    min_cached_entries: int = 100_000
    """A blend of fewer samples is computed anew and not kept in path_to_cache."""

    evaluation_samples: int = 0
    """What one evaluation asks for; filled in when datasets are built."""


class PackedDataset(MegatronDataset, abc.ABC):
    """Rows of one split of one packed folder; a kind of rows says what a sample of them holds."""

    made_by: str
    """What the manifest of rows of this kind says."""

    packer: str
    """The command that packs them, for messages."""

    blank: dict[str, int]
    """Arrays of a sample, and the values with which it counts for nothing."""

    def __init__(
        self, dataset: PackedRows, dataset_path: str, indices: np.ndarray, num_samples: int | None,
        index_split: Split, config: PackedDatasetConfig
    ) -> None:  # fmt: skip
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        if num_samples is None:
            self.num_samples = len(indices)
        self._period = len(indices)
        """Samples of an epoch: its rows, and what is blank behind them."""
        if index_split is not Split.train and not self._is_mixed():
            self._period = max(self._period, config.evaluation_samples)
        self._epoch = (-1, np.zeros(0, np.int64))

    @abc.abstractmethod
    def sample(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of one row by name, [S] each with S = sequence_length; the row's end is padding."""

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: PackedRows) -> int:
        """Rows of a folder."""
        return len(low_level_dataset)

    @classmethod
    def build_low_level_dataset(cls, dataset_path: str, config: PackedDatasetConfig) -> PackedRows:
        """Open a folder. Raises InputError if it is damaged, of another kind, or packed for other rows or a larger
        vocabulary."""
        packed = PackedRows(dataset_path)
        found = packed.manifest.get("made_by")
        if found != cls.made_by:
            raise InputError(f"{dataset_path}: packed by {found}; this stage takes rows of {cls.packer}")
        if packed.sequence_length != config.sequence_length:
            raise InputError(
                f"{dataset_path}: packed in rows of {packed.sequence_length} tokens, --seq-length is "
                f"{config.sequence_length}; pack again with {cls.packer} --sequence-length, or train with that length"
            )
        ids = packed.manifest.get("vocab_size", 0)
        if ids > config.vocab_size:
            raise InputError(
                f"{dataset_path}: tokenized with {ids} ids, but the model has {config.vocab_size}; pack with the "
                "model's tokenizer, or give the model's --vocab-size"
            )
        return packed

    def _is_mixed(self) -> bool:
        """Whether this folder is one of several, which are drawn by weight, each as often as that takes."""
        splits = self.config.blend_per_split
        folders, _ = splits[self.index_split.value] if splits else self.config.blend
        return len(folders) > 1

    def __len__(self) -> int:
        return self.num_samples

    @property
    def rows_of_epoch(self) -> int:
        """The samples from the first on of which no two are the same row."""
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of a sample by name, [S] each; a blank one's count for nothing."""
        arrays = self.sample(self.place(index)[1])
        if index % self._period >= len(self.indices):
            for name, value in self.blank.items():
                arrays[name] = np.full_like(arrays[name], value)
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def place(self, index: int) -> tuple[str, int]:
        """(folder, row) of a sample; a blank one has the tokens of some row."""
        if index < 0 or not len(self.indices):
            raise IndexError(index)
        epoch, place = divmod(int(index), self._period)
        if self._epoch[0] != epoch:
            seed = self.config.random_seed
            self._epoch = (epoch, rows.permutation(len(self.indices), seed, epoch, rows.SAMPLE_ORDER))
        return self.dataset_path, int(self.indices[self._epoch[1][place % len(self.indices)]])


def build_packed_datasets(
    dataset_class: type[PackedDataset], config: PackedDatasetConfig, num_samples: tuple[int, int, int]
) -> tuple[Dataset | None, ...]:
    """Build train, valid and test sets of at least `num_samples` each; None for 0, or for a split without a share.

    num_samples: that of test is what one evaluation asks for. Call it on all ranks, or without torch.distributed.
    Folders without weights are mixed by their numbers of rows. A split with a share has a row of each folder; a folder
    of a single row trains, and what is left without one is None, which is said. Raises InputError, on all ranks if on
    one, before anything is built.
    """
    folders = {folder: None for prefixes, _ in _blends(config) for folder in prefixes}
    problems = [] if folders else [f"no packed rows given; name at least one folder of {dataset_class.packer}"]
    for folder in folders:
        try:
            folders[folder] = dataset_class.build_low_level_dataset(folder, config)
        except InputError as error:
            problems.append(str(error))
    left_out, more = _empty_splits(config, folders, num_samples)
    templates = {folder: packed.manifest.get("template") for folder, packed in folders.items() if packed}
    raise_on_every_rank(problems + more + mixed_templates(templates))
    num_samples = tuple(0 if split in left_out else wanted for split, wanted in zip(Split, num_samples, strict=True))
    config = dataclasses.replace(
        config,
        template=next(iter(templates.values())),
        sources=tuple(dict.fromkeys(name for packed in folders.values() for name in packed.sources)),
        blend=config.blend and _with_weights(config.blend, folders),
        blend_per_split=config.blend_per_split and [_with_weights(blend, folders) for blend in config.blend_per_split],
        evaluation_samples=num_samples[2],
    )
    built = PackedBuilder(dataset_class, list(num_samples), lambda: True, config).build()
    return tuple(dataset if wanted else None for dataset, wanted in zip(built, num_samples, strict=True))


class PackedBuilder(StreamBuilder):
    """The builder of packed rows: a share above 0 is a row at least."""

    def _build_megatron_dataset_splits(self, dataset_path, split, sizes, *args, **kwargs):
        """As upstream's, with `split` as shares that are whole rows."""
        rows_here = len(self.cls.build_low_level_dataset(dataset_path, self.config))
        ends = split_rows(split, rows_here)
        exact = [ends[number] and tuple(end / rows_here for end in ends[number]) for number in range(len(split))]
        return super()._build_megatron_dataset_splits(dataset_path, exact, sizes, *args, **kwargs)


def split_rows(matrix: Sequence[tuple[float, float] | None], size: int) -> list[tuple[int, int] | None]:
    """The rows [start, end) of each split of `size` rows, by its shares [start, end); None for one without a share.

    As Megatron rounds, but that a split takes a row of its neighbours where it would have none; with fewer rows than
    splits the first ones have them.

    >>> split_rows([(0, 0.98), (0.98, 1.0), None], 3)
    [(0, 2), (2, 3), None]
    """
    ends = [share and (round(share[0] * size), round(share[1] * size)) for share in matrix]
    given = [number for number, rows_of_split in enumerate(ends) if rows_of_split]
    for place, number in enumerate(given):  # from the left, each leaves a row for those behind it
        start = ends[given[place - 1]][1] if place else ends[number][0]
        behind = len(given) - place - 1
        end = min(max(ends[number][1], start + 1), max(size - behind, start + 1), size)
        ends[number] = (start, end if behind else ends[number][1])
    return ends


def _empty_splits(
    config: PackedDatasetConfig, folders: dict[str, PackedRows | None], num_samples: tuple[int, int, int]
) -> tuple[set[Split], list[str]]:
    """The splits that no folder has a row for, which rank 0 says, and the faults: of train, or of some folders."""
    left_out, problems = set(), []
    if not config.blend or None in folders.values():
        return left_out, problems
    for split, wanted in zip(Split, num_samples, strict=True):
        empty = [
            folder
            for folder, packed in folders.items()
            if (place := split_rows(config.split_matrix, len(packed))[split.value]) and place[0] == place[1]
        ]
        if not wanted or not empty:
            continue
        line = f"{empty[0]}: {len(folders[empty[0]])} rows, none for its {split.name} split (--split {config.split})"
        if split is Split.train or len(empty) < len(folders):
            problems.append(f"{line}; pack more, or give another --split")
        else:
            left_out.add(split)
            if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
                print(f"{line}: it is left out; pack more, or give rows of its own", file=sys.stderr, flush=True)
    return left_out, problems


def mixed_templates(templates: dict[str, dict[str, Any] | None]) -> list[str]:
    """Tell of folders, with their manifests' templates, that were packed with others than the first; names are none."""
    asked = {"name": "", "think": False}  # how it is called, and how a model is asked: no word of a row
    (first, wanted), *others = templates.items() or [("", None)]
    return [
        f"{folder}: packed with template {template.get('name')!r}, {first} with {wanted.get('name')!r}, and they put "
        "other words around the turns; pack one of them again, as a model answers in one template"
        for folder, template in others
        if template and wanted and template | asked != wanted | asked
    ]


def template_of(datasets: Sequence[Dataset | None]) -> dict[str, Any] | None:
    """The template of all datasets of one call of `build_packed_datasets`, None where no manifest tells it."""
    return next((dataset.config.template for dataset in datasets if dataset is not None), None)


def sources_of(datasets: Sequence[Dataset | None]) -> tuple[str, ...]:
    """Names of the sources, the same in all datasets of one call of `build_packed_datasets`."""
    return next(dataset.config.sources for dataset in datasets if dataset is not None)


def _blends(config: PackedDatasetConfig) -> list[tuple[list[str], list[float] | None]]:
    """(folders, weights) of all splits."""
    return [blend for blend in (config.blend, *(config.blend_per_split or [])) if blend and blend[0]]


def _with_weights(blend, folders: dict[str, PackedRows]) -> tuple[list[str], list[float] | None] | None:
    """Weights by rows where none are given."""
    prefixes, weights = blend or ([], None)
    if len(prefixes) > 1 and weights is None:
        weights = [float(len(folders[folder])) for folder in prefixes]
    return blend and (prefixes, weights)
