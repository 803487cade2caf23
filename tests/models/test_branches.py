"""Rows whose sequences share their beginning: told by their positions, and attended as if each stood by itself."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.attention import attend_row, core, draw

from megatron_chimed.backend import cpu
from megatron_chimed.models import attention
from megatron_chimed.models.branches import BranchedSeqParams, describe_row

cpu.install()
HEAD = 16
TREES = [(7, [5, 1, 9]), (3, []), (1, [4, 2]), (0, [6]), (12, [3, 3, 3, 3])]
"""Of each document the tokens of its prompt, and those of the answers behind it."""


def positions_of(trees: list[tuple[int, list[int]]]) -> list[int]:
    """The row: a prompt with its first answer, then each other answer from the prompt's end on."""
    found = []
    for prompt, answers in trees:
        first, *others = answers or [0]
        found += [*range(prompt + first), *(place for more in others for place in range(prompt, prompt + more))]
    return found


def sequences_of(trees: list[tuple[int, list[int]]]) -> list[list[int]]:
    """Of each answer with its prompt in front the places of its tokens in the row: the slow, obvious way."""
    found, start = [], 0
    for prompt, answers in trees:
        shared = list(range(start, start + prompt))
        start += prompt
        for more in answers or [0]:
            found.append(shared + list(range(start, start + more)))
            start += more
    return found


documents = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 6), max_size=5))


@given(st.lists(documents, min_size=1, max_size=6))
def test_what_a_token_sees_is_told_by_the_positions_alone(trees):
    row = describe_row(torch.tensor([positions_of(trees)]))
    size = len(positions_of(trees))
    expected = np.zeros((size, size), bool)
    for places in sequences_of(trees):
        for number, place in enumerate(places):
            expected[place, places[: number + 1]] = True
    if isinstance(row, BranchedSeqParams):
        query, key = torch.arange(size)[:, None], torch.arange(size)[None]
        assert np.array_equal(row.sees()(0, 0, query, key).numpy(), expected)
    else:
        bounds = row.cu_seqlens_q.tolist()
        assert all(expected[start:end, start:end].sum() == expected[start:end].sum() for start, end in pairwise(bounds))
        assert all(len(answers) < 2 for _, answers in trees)


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
@pytest.mark.parametrize("groups", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_outputs_and_gradients_are_those_of_each_sequence_by_itself(kernel, groups):
    positions, sequences = positions_of(TREES), sequences_of(TREES)
    inputs = draw((len(positions),), groups, HEAD)
    weights = torch.randn(len(positions), 4 * HEAD, generator=torch.Generator().manual_seed(1))
    seen: set[int] = set()
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    total, outputs = 0, {}
    for places in sequences:
        output = core("sdpa", HEAD)._packed(*(leaf[places] for leaf in leaves), 0.0, alone(len(places))).flatten(-2)
        new = [number for number, place in enumerate(places) if place not in seen]  # a prompt counts once
        total = total + (output[new] * weights[[places[number] for number in new]]).sum()
        outputs |= {places[number]: output[number].detach() for number in new}
        seen |= set(places)
    total.backward()
    expected = [torch.stack([outputs[place] for place in range(len(positions))]), *(leaf.grad for leaf in leaves)]
    found = attend_row(kernel, inputs, describe_row(torch.tensor([positions])), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    blind = describe_row(torch.tensor([positions]))
    blind.prefixes = blind.prefixes * 0  # the control: answers that do not see their prompt
    found = attend_row(kernel, inputs, blind, weights)
    assert min((one - other).abs().max() for one, other in zip(found, expected, strict=True)) > 1e-2


def alone(size: int):
    """The description of one document."""
    return describe_row(torch.arange(size)[None])


def test_a_gpu_takes_flex_attention_whatever_the_kernel_of_documents_is(monkeypatch):
    asked = []
    monkeypatch.setattr(attention.flex, "attend", lambda *given: asked.append(given[3]) or given[0])
    row = describe_row(torch.tensor([positions_of(TREES)]))
    query = torch.zeros(len(positions_of(TREES)), 4, HEAD)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for kernel in ("flash", "varlen", "sdpa", "flex"):
        core(kernel, HEAD)(query, query, query, None, packed_seq_params=row)
    assert asked == [row] * 4


@given(st.integers(1, 4), st.integers(1, 12), st.data())
def test_rows_without_branches_are_bounded_by_their_documents(batch, length, data):
    drawn = [data.draw(st.sets(st.integers(0, length - 1))) for _ in range(batch)]
    positions = torch.tensor([[place - max(s for s in starts | {0} if s <= place) for place in range(length)]
                              for starts in drawn])  # fmt: skip
    row = describe_row(positions)
    assert not isinstance(row, BranchedSeqParams) and row.cu_seqlens_q.dtype == torch.int32
    counted = [place for start, end in pairwise(row.cu_seqlens_q.tolist()) for place in range(end - start)]
    assert counted == positions.ravel().tolist()
    assert set(range(0, batch * length, length)) <= set(row.cu_seqlens_q.tolist()), "a document runs on into a row"
    assert row.max_seqlen_q == int(positions.max()) + 1


@pytest.mark.parametrize(
    ("positions", "reason"),
    [([], "start with 0"), ([1, 2], "start with 0"), ([[3, 0], [0, 1]], "start with 0"), ([0, 1, 5, 6], "more tokens")],
)
def test_positions_that_are_no_row_are_refused(positions, reason):
    with pytest.raises(ValueError, match=reason):
        describe_row(torch.tensor(positions, dtype=torch.int64))
