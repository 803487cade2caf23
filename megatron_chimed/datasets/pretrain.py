"""Pre-training samples from indexed corpora, on Megatron's blended dataset builder.

Where it departs from Megatron's GPTDataset: the order of an epoch does not depend on how long the run is; documents
end where the index says so, and no loss crosses an end; cached indices are keyed by the corpus's content and checked
when they are read; a corpus is refused at start-up if its files are not those of its manifest.
"""

import dataclasses
import os

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from megatron_chimed.corpus.manifest import check_corpus_sizes
from megatron_chimed.datasets import rows
from megatron_chimed.datasets.blend import StreamBuilder, cached, raise_on_every_rank
from megatron_chimed.errors import InputError

MAX_EPOCHS_IN_MEMORY = 4  # a row may read on into the next epoch; tiny corpora cross many


@dataclasses.dataclass
class PretrainDatasetConfig(BlendedMegatronDatasetConfig):
    """Megatron's dataset settings (blend, split, seed, length, cache folder), and these."""

    mask_loss_across_documents: bool = True
    """Leave out of the loss the last token of each document, whose label is the first token of another document."""

    isolate_documents: bool = False
    """Restart position ids at each document, for attention that never crosses a document (cu_seqlens)."""

    eod_token: int | None = None
    """A token id that ends a document too: for a corpus that holds several texts in one document of its index."""

    min_cached_entries: int = 100_000
    """Epochs of fewer documents and samples are computed anew, in milliseconds, and not kept in path_to_cache."""


class PretrainDataset(MegatronDataset):
    """Samples of one split of one corpus.

    Each is a dict of tensors of S = sequence_length elements: tokens int64, labels int64 (token t+1), loss_mask
    float32, position_ids int64. The length is what was asked for, or with None the samples that start in the first
    epoch; the stream has no end, so a larger index reads on. Raises InputError if a split to be read has no tokens.
    """

    def __init__(
        self, dataset: IndexedDataset, dataset_path: str, indices: np.ndarray, num_samples: int | None,
        index_split: Split, config: PretrainDatasetConfig
    ) -> None:  # fmt: skip
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        first = int(indices[0]) if len(indices) else 0
        self.indices = range(first, first + len(indices))  # the array would take 4 bytes per document
        self.corpus_hash = check_corpus_sizes(dataset_path)
        self.num_tokens = _count_tokens(dataset, self.indices)
        self._epochs: dict[int, rows.Epoch] = {}
        if self.num_tokens == 0 and num_samples != 0:
            raise InputError(_no_tokens(dataset_path, self.indices, index_split))
        if num_samples is None:
            self.num_samples = len(self._samples_of_epoch(0))
        if self._is_cached():  # rank 0 of the builder comes first and writes what the others, and their workers, map
            for epoch in range(-(-(self.num_samples * config.sequence_length + 1) // self.num_tokens)):
                self._epoch(epoch)

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: IndexedDataset) -> int:
        """Documents in a corpus: a split never cuts one in two."""
        return len(low_level_dataset.document_indices) - 1

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: PretrainDatasetConfig) -> IndexedDataset:
        """Open a corpus. Raises InputError unless its files have the sizes of its manifest, and hold a token."""
        return _open_corpus(dataset_path, mmap=config.mmap_bin_files)

    def __len__(self) -> int:
        return self.num_samples

    @property
    def rows_of_epoch(self) -> int:
        """The samples that start in the first epoch: those from the first on that hold each token once."""
        return len(self._samples_of_epoch(0))

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of a sample by name, [S] each; see the class."""
        length = self.config.sequence_length
        text, starts = self._read(self._shuffled(int(index)) * length, length + 1)
        if self.config.eod_token is not None:
            starts = np.union1d(starts, np.flatnonzero(text[:-1] == self.config.eod_token) + 1)
        masked, isolated = self.config.mask_loss_across_documents, self.config.isolate_documents
        sample = {
            "tokens": text[:-1].copy(),
            "labels": text[1:].copy(),
            "loss_mask": rows.mask_last_tokens(starts, length) if masked else np.ones(length, np.float32),
            "position_ids": rows.restart_positions(starts, length) if isolated else np.arange(length),
        }
        return {name: torch.from_numpy(values) for name, values in sample.items()}

    def place(self, index: int) -> tuple[str, int]:
        """(corpus, sample of its stream) of a sample: the stream is all epochs, each cut every S tokens."""
        return self.dataset_path, self._shuffled(index)

    def _shuffled(self, index: int) -> int:
        """The sample of the stream that is drawn at `index`."""
        if index < 0 or self.num_tokens == 0:
            raise IndexError(index)
        epoch = index * self.config.sequence_length // self.num_tokens
        samples = self._samples_of_epoch(epoch)
        return samples[self._epoch(epoch).shuffle[index - samples.start]]

    def _read(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream's tokens [position, position + count), int64 [count], and where in them documents start (and 0).

        The tokens are copies: a view of a memory-mapped corpus crashes the process when it outlives the corpus.
        """
        text, starts, filled = np.empty(count, np.int64), [], 0
        dtype, size = self.dataset.index.dtype, DType.size(self.dataset.index.dtype)
        while filled < count:
            epoch, begin = divmod(position + filled, self.num_tokens)
            end = min(begin + count - filled, self.num_tokens)
            documents, skips, counts = rows.find_pieces(self._epoch(epoch), begin, end)
            offsets = (_token_offsets(self.dataset, documents + self.indices.start) + skips) * size
            for offset, num_tokens in zip(offsets.tolist(), counts.tolist(), strict=True):
                text[filled : filled + num_tokens] = self.dataset.bin_reader.read(dtype, num_tokens, offset)
                starts.append(filled)
                filled += num_tokens
        return text, np.array(starts, np.int64)

    def _samples_of_epoch(self, epoch: int) -> range:
        return rows.samples_of_epoch(epoch, self.num_tokens, self.config.sequence_length)

    def _is_cached(self) -> bool:
        if self.config.path_to_cache is None or self.num_samples == 0:
            return False
        return max(len(self.indices), len(self._samples_of_epoch(0))) >= self.config.min_cached_entries

    def _cache_key(self, epoch: int) -> dict:
        """All that an epoch's index depends on, and its format: whatever changes the cache stands here."""
        return {
            "format": 1,
            "corpus": self.corpus_hash,
            "documents": [self.indices.start, self.indices.stop],
            "seed": self.config.random_seed,
            "epoch": epoch,
            "sequence_length": self.config.sequence_length,
        }

    def _epoch(self, epoch: int) -> rows.Epoch:
        """The index of an epoch: from memory, the cache, or built (O(documents) time and memory)."""
        if epoch not in self._epochs:
            if len(self._epochs) == MAX_EPOCHS_IN_MEMORY:
                del self._epochs[next(iter(self._epochs))]
            if self._is_cached():
                flat = cached(self.config.path_to_cache, self._cache_key(epoch), lambda: self._build_epoch(epoch))
                num_documents = (len(flat) - len(self._samples_of_epoch(epoch))) // 2
                self._epochs[epoch] = rows.Epoch(*np.split(flat, [num_documents, 2 * num_documents]))
            else:
                self._epochs[epoch] = self._build_epoch(epoch)
        return self._epochs[epoch]

    def _build_epoch(self, epoch: int) -> rows.Epoch:
        bounds = _token_offsets(self.dataset, np.arange(self.indices.start, self.indices.stop + 1))
        return rows.build_epoch(np.diff(bounds), self.config.random_seed, epoch, self.config.sequence_length)


def build_pretrain_datasets(config: PretrainDatasetConfig, num_samples: tuple[int, int, int]) -> tuple[Dataset, ...]:
    """Build train, valid and test sets of at least `num_samples` each; None for 0, or for a split without a share.

    Call it on all ranks, or without torch.distributed. A blend without weights is weighted by the corpora's tokens.
    Raises InputError, on all ranks if on one, before anything is built: files are not those of a manifest, a split from
    which samples are wanted has no tokens, a weight is not positive, no corpus is given.
    """
    raise_on_every_rank(_find_problems(config, num_samples))
    per_split = config.blend_per_split and [_with_weights(blend) for blend in config.blend_per_split]
    config = dataclasses.replace(config, blend=_with_weights(config.blend), blend_per_split=per_split)
    built = StreamBuilder(PretrainDataset, list(num_samples), lambda: True, config).build()
    return tuple(dataset if wanted else None for dataset, wanted in zip(built, num_samples, strict=True))


def _find_problems(config: PretrainDatasetConfig, num_samples: tuple[int, int, int]) -> list[str]:
    """One line per corpus, split or weight that cannot be trained on."""
    if config.mock:
        return ["no corpus given; name at least one .bin/.idx prefix for the blend"]
    problems = {}  # by text: a corpus of several splits is reported once
    for split, wanted in zip(Split, num_samples, strict=True):
        blend = config.blend or config.blend_per_split[split.value]
        share = config.split_matrix[split.value] if config.blend else (0.0, 1.0)
        prefixes, weights = blend or ([], None)
        for prefix, weight in zip(prefixes, weights or [1.0] * len(prefixes), strict=True):
            if not 0 < weight < float("inf"):
                problems[f"{prefix}: blend weight {weight}; give a positive number, or leave the corpus out"] = None
            try:
                dataset = _open_corpus(prefix, mmap=False)
            except InputError as error:
                problems[str(error)] = None
                continue
            if wanted and share is not None:  # rounded as in BlendedMegatronDatasetBuilder
                documents = range(*(round(bound * (len(dataset.document_indices) - 1)) for bound in share))
                if _count_tokens(dataset, documents) == 0:
                    problems[_no_tokens(prefix, documents, split)] = None
    return list(problems)


def _no_tokens(prefix: str, documents: range, split: Split) -> str:
    where = f"{split.name} split (documents {documents.start} to {documents.stop}, end excluded)"
    return f"{prefix}: no token in its {where}; give the split a larger share, or ask for none of its samples"


def _with_weights(blend: tuple[list[str], list[float] | None] | None) -> tuple[list[str], list[float] | None] | None:
    """Weights by tokens where none are given: upstream's, by samples, end the run after one epoch."""
    prefixes, weights = blend or ([], None)
    if len(prefixes) < 2:
        return blend and (prefixes, None)
    if weights is None:
        corpora = [_open_corpus(prefix, mmap=False) for prefix in prefixes]
        weights = [float(_count_tokens(corpus, range(len(corpus.document_indices) - 1))) for corpus in corpora]
    return prefixes, weights


def _open_corpus(prefix: str, mmap: bool) -> IndexedDataset:
    check_corpus_sizes(prefix)
    if os.path.getsize(f"{prefix}.bin") == 0:
        raise InputError(f"{prefix}.bin: holds no tokens; leave the corpus out or build it again")
    return IndexedDataset(str(prefix), mmap=mmap)


def _token_offsets(dataset: IndexedDataset, documents: np.ndarray) -> np.ndarray:
    """Where documents [n] start in the .bin, in tokens, int64 [n]; one past the last starts at its end."""
    pointers, size = dataset.index.sequence_pointers, DType.size(dataset.index.dtype)
    end = int(pointers[-1]) // size + int(dataset.sequence_lengths[-1])
    sequences = dataset.document_indices[documents]
    return np.where(sequences == len(dataset), end, pointers[np.minimum(sequences, len(dataset) - 1)] // size)


def _count_tokens(dataset: IndexedDataset, documents: range) -> int:
    return int(np.diff(_token_offsets(dataset, np.array([documents.start, documents.stop])))[0])
