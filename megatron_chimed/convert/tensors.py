"""Weights of one Hugging Face layer to Megatron's fused ones and back: pure functions, each beside its inverse.

`join` functions take the Hugging Face tensors of a name-table entry and give Megatron's one tensor; `split` functions
are their inverses. Both only move rows, so that a round trip is exact to the bit.
"""

from collections.abc import Sequence

import torch


def join_one(parts: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
    """A weight that both sides keep alike."""
    (only,) = parts
    return only


def split_one(tensor: torch.Tensor, rows: Sequence[int], groups: int) -> list[torch.Tensor]:
    """Inverse of `join_one`."""
    return [tensor]


def join_rows(parts: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
    """Gate [F, H] and up [F, H] one below the other: [2F, H]."""
    return torch.cat(list(parts))


def split_rows(tensor: torch.Tensor, rows: Sequence[int], groups: int) -> list[torch.Tensor]:
    """Inverse of `join_rows`; rows: of each part."""
    return list(tensor.split(list(rows)))


def join_qkv(parts: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
    """Query [heads * d, H], key and value [groups * d, H] interleaved by query group: [(heads + 2 * groups) * d, H].

    Each group has its heads / groups queries, then its key, then its value, so that a tensor-parallel rank that takes
    a slice of the rows has whole groups.

    >>> join_qkv([torch.tensor([[1], [2]]), torch.tensor([[3], [4]]), torch.tensor([[5], [6]])], groups=2).flatten()
    tensor([1, 3, 5, 2, 4, 6])
    """
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], dim=1).flatten(0, 1)


def split_qkv(tensor: torch.Tensor, rows: Sequence[int], groups: int) -> list[torch.Tensor]:
    """Inverse of `join_qkv`; rows: of query, key and value, over all groups."""
    by_group = tensor.unflatten(0, (groups, -1))
    return [part.flatten(0, 1) for part in by_group.split([count // groups for count in rows], dim=1)]
