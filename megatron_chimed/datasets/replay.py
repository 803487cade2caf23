"""Earlier data mixed into the training data by a fixed share, so that what they taught is kept."""

from fractions import Fraction
from typing import Any

import torch
from torch.utils.data import Dataset


class OtherKind(Dataset):
    """Rows of a corpus among packed ones, or packed ones among a corpus's: the same tensors but for ``source``."""

    def __init__(self, rows: Any, has_source: bool):
        self.rows, self.has_source = rows, has_source

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows_of_epoch(self) -> int:
        """The samples from the first on that hold each row, or each token, once."""
        return self.rows.rows_of_epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of a sample by name, [S] each; of a corpus all is of the first source, and none of it padding."""
        sample = dict(self.rows[index])
        sample.pop("source", None)
        return sample | ({"source": torch.zeros_like(sample["tokens"])} if self.has_source else {})

    def place(self, index: int) -> tuple[str, int]:
        """(path, number in it) of a sample."""
        return self.rows.place(index)


class ReplayMix(Dataset):
    """Samples of `train` and `replay`; of the first n, whatever n, floor(n x share) are of replay.

    Which sample comes when depends on its number alone, so that a run that goes on draws what an uninterrupted one
    does, and a longer run repeats a shorter one. The weights of a blend inside of either are left as they are.
    """

    def __init__(self, train: Any, replay: Any, share: float):
        self.train, self.replay = train, replay
        self.share = Fraction(str(share))  # the decimal as written; multiples of a float drift

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of a sample by name, [S] each."""
        dataset, number = self._drawn(int(index))
        sample = dict(dataset[number])
        sample.pop("dataset_id", None)  # a blend's samples have it, those of a single corpus do not
        return sample

    def place(self, index: int) -> tuple[str, int]:
        """(path, number in it) of a sample."""
        dataset, number = self._drawn(int(index))
        return dataset.place(number)

    def _drawn(self, index: int) -> tuple[Any, int]:
        """The dataset of a sample, and its number in there."""
        before, after = int(index * self.share), int((index + 1) * self.share)
        return (self.replay, before) if after > before else (self.train, index - before)
