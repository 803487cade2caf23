"""FlexAttention as a kernel of packed rows, on a CPU: what it gives, its gradients, and how often its mask is made."""

from types import SimpleNamespace

import pytest
import torch
from support.attention import attend, core, draw, packed

from megatron_chimed.models import attention, flex

LENGTHS, HEAD = (130, 1, 64, 57), 16


@pytest.mark.parametrize("groups", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_outputs_and_gradients_are_those_of_each_document_apart(groups, monkeypatch):
    inputs = draw(LENGTHS, groups, HEAD)
    expected = attend("sdpa", inputs, LENGTHS)
    for one, other in zip(attend("flex", inputs, LENGTHS), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(flex, "own_document", lambda boundaries, tokens: lambda b, h, query, key: query >= key)
    joined = attend("flex", inputs, LENGTHS)
    assert min((one - other).abs().max() for one, other in zip(joined, expected, strict=True)) > 1e-2, "the control"


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_torchs_flex_attention_gives_the_same_under_the_mask():
    """Its forward pass is what torch has on a CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    inputs = draw(LENGTHS, 2, HEAD)
    mask = flex.block_mask(packed(LENGTHS, torch.device("cpu")), sum(LENGTHS))
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in inputs)
    found = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    expected = attend("sdpa", inputs, LENGTHS)[0]
    torch.testing.assert_close(found[0].transpose(0, 1).flatten(-2), expected, atol=1e-5, rtol=1e-5)


def test_layers_share_the_mask_of_a_row_and_rows_do_not(monkeypatch):
    made = []

    def noted(boundaries, tokens, original=flex.own_document):
        made.append(boundaries.tolist())
        return original(boundaries, tokens)

    monkeypatch.setattr(flex, "own_document", noted)
    inputs = draw(LENGTHS, 4, HEAD)
    for lengths in (LENGTHS, LENGTHS[::-1]):
        row = packed(lengths, torch.device("cpu"))
        for _ in range(3):
            core("flex", HEAD)(*inputs, None, packed_seq_params=row)
    assert made == [[0, 130, 131, 195, 252], [0, 57, 121, 122, 252]]


def test_dropout_in_attention_is_not_left_out():
    """torch's FlexAttention has none: the kernel gives way to SDPA."""
    inputs = draw(LENGTHS, 4, HEAD)
    row = packed(LENGTHS, torch.device("cpu"))
    dropped, whole = (core("flex", HEAD, dropout)(*inputs, None, packed_seq_params=row) for dropout in (0.5, 0.0))
    assert not torch.allclose(dropped, whole)
    assert "chimed_block_mask" in vars(row)  # of the one without


@pytest.mark.parametrize(("has_gpu", "chosen"), [(False, "sdpa"), (True, "varlen")])
def test_flex_is_taken_when_it_is_asked_for_alone(monkeypatch, has_gpu, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(
        attention.importlib.util, "find_spec", lambda name: None if name == "flash_attn" else SimpleNamespace()
    )
    assert attention.choose_kernel("auto") == chosen
    assert attention.choose_kernel("flex") == "flex"
