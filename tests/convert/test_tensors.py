"""The transformations of weights: against slow twins, there and back, and the property that they are for."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_chimed.convert.tensors import merge_qkv, merge_rows, split_qkv, split_rows


@st.composite
def heads(draw):
    """(query, key, value) of numbers that are all different, and the number of groups."""
    groups, per_group = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    size, hidden = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    counts = (groups * per_group * size, groups * size, groups * size)
    numbers = torch.arange(sum(counts) * hidden).view(-1, hidden)
    return [part.clone() for part in numbers.split(counts)], groups


def merge_qkv_slowly(parts, groups):
    """Row after row: each group's queries, its key, its value."""
    query, key, value = ([row for row in part] for part in parts)
    per_query, per_key = len(query) // groups, len(key) // groups
    rows = []
    for group in range(groups):
        rows += query[group * per_query : (group + 1) * per_query]
        rows += key[group * per_key : (group + 1) * per_key]
        rows += value[group * per_key : (group + 1) * per_key]
    return torch.stack(rows)


@given(heads())
def test_merging_interleaves_by_group(case):
    parts, groups = case
    assert torch.equal(merge_qkv(parts, groups), merge_qkv_slowly(parts, groups))


@given(heads())
def test_splitting_is_the_inverse_of_merging(case):
    parts, groups = case
    again = split_qkv(merge_qkv(parts, groups), [len(part) for part in parts], groups)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


@given(heads(), st.integers(1, 6))
def test_a_tensor_parallel_slice_holds_whole_groups(case, ranks):
    parts, groups = case
    if groups % ranks:
        return
    for rank, piece in enumerate(merge_qkv(parts, groups).chunk(ranks)):
        own = [part.chunk(ranks)[rank] for part in parts]
        assert torch.equal(piece, merge_qkv(own, groups // ranks))


@given(st.integers(1, 5), st.integers(1, 4))
def test_gate_and_up_lie_one_below_the_other(ffn, hidden):
    gate, up = torch.arange(2 * ffn * hidden).view(2, ffn, hidden)
    merged = merge_rows([gate, up], num_query_groups=1)
    assert torch.equal(merged[:ffn], gate) and torch.equal(merged[ffn:], up)
    again = split_rows(merged, [ffn, ffn], num_query_groups=1)
    assert torch.equal(again[0], gate) and torch.equal(again[1], up)
