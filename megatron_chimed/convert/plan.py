"""Plan of what a conversion writes: names, shapes and types of all tensors, and how to make each in its turn."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from megatron_chimed.errors import InputError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""Types that weights can be converted to."""

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
"""Types that weights may have."""


@dataclass(frozen=True)
class Planned:
    """A tensor, or one layer's or expert's part of one, that is made only when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    stack: tuple[int, ...] = ()
    """Leading axes of the whole tensor [*stack, *shape] in a Megatron checkpoint: (layers,), or (layers, experts)."""

    place: tuple[int, ...] = ()
    """The part's place on them."""

    def made(self) -> torch.Tensor:
        """Make the tensor [*shape]. Raises InputError where a number of it is none, or infinite: the weights are
        broken, and every result of the model would be."""
        tensor = self.make()
        assert tensor.dtype == self.dtype and tuple(tensor.shape) == self.shape, self.name
        if not all(map(math.isfinite, torch.aminmax(tensor))):  # one pass; isfinite takes twenty times as long
            place = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            value = tensor[tuple(place)].item()
            raise InputError(f"{self.name}{[*self.place, *place]} is {value}; such weights are broken, take other ones")
        return tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def start_writing(file: Any) -> None:
    """Have the disk begin with what was written to a file so far: else it rests until a file is closed, which waits for
    it. What it has written already leaves the page cache, and makes room for more."""
    file.flush()
    if hasattr(os, "posix_fadvise"):  # which macOS has not
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def total_bytes(planned: Iterable[Planned]) -> int:
    """Sum the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in planned)


def name_of(dtype: torch.dtype) -> str:
    """Name a type as config.json does: "bfloat16" for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
