"""What a loss in chunks of tokens cannot be combined with; what it computes is in tests/integration."""

from types import SimpleNamespace

import pytest

from megatron_chimed.models.gpt import check_layers
from megatron_chimed.models.options import ModelOptions, stated

PLAIN = {"transformer_impl": "transformer_engine", "num_moe_experts": None}
CHUNKS = ModelOptions(cross_entropy_chunk_tokens=8)


@pytest.mark.parametrize("name", ["defer_embedding_wgrad_compute", "fp8_output_proj"])
def test_output_layers_of_another_kind_are_refused(name):
    check_layers(SimpleNamespace(**PLAIN), CHUNKS)
    other = SimpleNamespace(**PLAIN, **{name: True})
    with pytest.raises(ValueError, match=f"an output layer without --{name.replace('_', '-')}"):
        check_layers(other, CHUNKS)
    check_layers(other, ModelOptions())


def test_a_checkpoint_does_not_keep_how_its_loss_was_computed():
    assert stated(CHUNKS) == {}
