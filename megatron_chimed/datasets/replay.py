"""Earlier data mixed into the training data by a fixed share, so that what they taught is kept."""

from fractions import Fraction
from typing import Any

import torch
from torch.utils.data import Dataset


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
