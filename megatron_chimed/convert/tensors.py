"""Merge the weights of one Hugging Face layer into Megatron's fused ones, and split them: pure functions and inverses.

A merge function takes the Hugging Face tensors of a name-table entry and gives Megatron's one tensor, of the same
dtype; the split function is its inverse. Both only move rows, so that a round trip is exact to the bit. A bias [rows]
is moved as its weight [rows, H] is.
"""

from collections.abc import Sequence

import torch

from megatron_chimed.convert.family import Entry
from megatron_chimed.convert.sizes import Sizes


def merge_one(parts: Sequence[torch.Tensor], num_query_groups: int) -> torch.Tensor:
    """Return the only tensor, of any shape: both sides keep the weight alike."""
    (only,) = parts
    return only


def split_one(tensor: torch.Tensor, rows: Sequence[int], num_query_groups: int) -> list[torch.Tensor]:
    """Return the tensor, of any shape, as a list: the inverse of `merge_one`."""
    return [tensor]


def merge_rows(parts: Sequence[torch.Tensor], num_query_groups: int) -> torch.Tensor:
    """Stack gate [F, H] on up [F, H]: [2F, H]."""
    return torch.cat(list(parts))


def split_rows(tensor: torch.Tensor, rows: Sequence[int], num_query_groups: int) -> list[torch.Tensor]:
    """Split [2F, H] into gate [F, H] and up [F, H], views of it: the inverse of `merge_rows`; rows: of each part."""
    return list(tensor.split(list(rows)))


def merge_qkv(parts: Sequence[torch.Tensor], num_query_groups: int) -> torch.Tensor:
    """Interleave query [heads * d, H], key and value [groups * d, H] by query group: [(heads + 2 * groups) * d, H].

    Each group has its heads / groups queries, then its key, then its value, so that a tensor-parallel rank that takes
    a slice of the rows has whole groups.

    >>> query, key, value = torch.tensor([[1], [2]]), torch.tensor([[3], [4]]), torch.tensor([[5], [6]])
    >>> merge_qkv([query, key, value], num_query_groups=2).flatten()
    tensor([1, 3, 5, 2, 4, 6])
    """
    return torch.cat([part.unflatten(0, (num_query_groups, -1)) for part in parts], dim=1).flatten(0, 1)


def split_qkv(tensor: torch.Tensor, rows: Sequence[int], num_query_groups: int) -> list[torch.Tensor]:
    """Split [(heads + 2 * groups) * d, H] into query [heads * d, H], key and value [groups * d, H], all new tensors.

    The inverse of `merge_qkv`; rows: of query, key and value, over all groups.
    """
    by_group = tensor.unflatten(0, (num_query_groups, -1))
    return [part.flatten(0, 1) for part in by_group.split([count // num_query_groups for count in rows], dim=1)]


MERGES = {"one": (merge_one, split_one), "rows": (merge_rows, split_rows), "qkv": (merge_qkv, split_qkv)}
"""(merge, its inverse) by the names in `Entry.merge`."""


def merge(entry: Entry, parts: Sequence[torch.Tensor], sizes: Sizes) -> torch.Tensor:
    """Merge the Hugging Face tensors of one layer, of shapes `entry.hf_shapes`, into Megatron's, of `megatron_shape`.

    All have one dtype, which stays. Query [heads * d, H], key and value [groups * d, H] make
    [(heads + 2 * groups) * d, H]; gate and up [F, H] make [2F, H].
    """
    return MERGES[entry.merge][0](parts, sizes.num_query_groups)


def split(entry: Entry, tensor: torch.Tensor, sizes: Sizes) -> list[torch.Tensor]:
    """Split Megatron's tensor of one layer [rows, ...] into the Hugging Face tensors: the inverse of `merge`."""
    return MERGES[entry.merge][1](tensor, [shape[0] for shape in entry.hf_shapes(sizes)], sizes.num_query_groups)
