"""Rotary embeddings of packed rows: which class a model gets, and which angles each token."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding

from megatron_chimed.models.branches import describe_row
from megatron_chimed.models.rotary import PackedRotaryEmbedding, PackedYarnRotaryEmbedding, take_packed_positions


def bare(kind: type) -> torch.nn.Module:
    """One without frequencies."""
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    return made


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(RotaryEmbedding, PackedRotaryEmbedding), (YarnRotaryEmbedding, PackedYarnRotaryEmbedding)],
)
def test_a_token_of_a_packed_row_has_the_angles_of_its_place_in_its_document(kind, wanted):
    model = SimpleNamespace(rotary_pos_emb=bare(kind))
    take_packed_positions(model)
    rotary = model.rotary_pos_emb
    assert type(rotary) is wanted
    table = torch.arange(4.0).view(4, 1, 1, 1)  # the angle of a place is the place itself
    rotary.row = describe_row(torch.tensor([0, 1, 2, 0, 0, 1, 2, 3]), "cpu")
    assert rotary.of_tokens(table, packed_seq=True).flatten().tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert rotary.of_tokens(table, packed_seq=False) is table
    rotary.row = describe_row(torch.tensor([0, 1, 2, 1, 0, 1]), "cpu")  # a branch behind the first token
    assert rotary.of_tokens(table, packed_seq=True).flatten().tolist() == [0, 1, 2, 1, 0, 1]
    assert rotary.of_tokens(table, packed_seq=False) is table, "another model's pass, such as one that samples"


def test_a_model_without_rotary_positions_is_left_alone():
    take_packed_positions(model := SimpleNamespace())
    assert not vars(model)
