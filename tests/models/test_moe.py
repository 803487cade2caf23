"""The router's auxiliary loss: that of transformers, with the weight of the main loss, wherever it is computed."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer import TransformerConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from megatron_chimed.models.moe import MicroBatch, Router, find_routers, moe_problems, tell_routers

EXPERTS, TOP, COEFFICIENT = 6, 2, 0.3


def make_config(**changes) -> TransformerConfig:
    sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 16}
    moe = {"num_moe_experts": EXPERTS, "moe_router_topk": TOP, "moe_ffn_hidden_size": 4}
    moe |= {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": COEFFICIENT}
    rest = {"calculate_per_token_loss": True, "use_cpu_initialization": True, "add_bias_linear": False}
    return TransformerConfig(**sizes | moe | rest | changes)


@pytest.fixture(scope="module")
def alone():
    """The process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.fixture
def model(monkeypatch, alone) -> torch.nn.Module:
    """A model that is a router and no more, with random weights."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(Router, "_apply_expert_bias", lambda *args, **kwargs: None)  # compiled, for what is not here
    torch.manual_seed(0)
    groups = SimpleNamespace(tp=alone, cp=alone, tp_cp=alone, tp_dp_cp=alone)
    module = torch.nn.Sequential(Router(make_config(), pg_collection=groups)).train()
    module[0].weight.data.normal_()
    module[0].set_layer_number(1)
    module.routers = find_routers(module)
    return module


HIDDEN = torch.randn(7, 2, 8, generator=torch.Generator().manual_seed(1))
PADDING = torch.zeros(2, 7, dtype=torch.bool)
PADDING[0, 5:] = PADDING[1, 3:] = True


def gradient(model: torch.nn.Module) -> torch.Tensor:
    """The gradient [experts, hidden] of the auxiliary loss alone."""
    model.zero_grad()
    probabilities, _ = model[0](HIDDEN)
    (probabilities * 0).sum().backward()
    return model[0].weight.grad.clone()


def expected(model: torch.nn.Module, padding: torch.Tensor | None = None) -> torch.Tensor:
    """The same by transformers, whose loss does not divide by the number of experts of a token."""
    model.zero_grad()
    logits = torch.nn.functional.linear(HIDDEN, model[0].weight).transpose(0, 1).reshape(-1, EXPERTS)
    mask = None if padding is None else (~padding).long()
    (load_balancing_loss_func((logits,), EXPERTS, TOP, mask) * COEFFICIENT / TOP).backward()
    return model[0].weight.grad.clone()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_auxiliary_loss_is_that_of_transformers_times_what_the_main_loss_counts(model):
    tell_routers(model, lambda: MicroBatch(torch.tensor(5)))
    assert close(gradient(model), 5 * expected(model)) and expected(model).abs().max() > 1e-3


def test_padding_is_not_balanced(model):
    tell_routers(model, lambda: MicroBatch(torch.tensor(5), PADDING))
    assert close(gradient(model), 5 * expected(model, PADDING))
    assert not close(expected(model), expected(model, PADDING))


def test_upstream_weighs_it_by_tokens(model):
    """Why the router is ours: where 5 of 14 tokens are learnt, the gradient would be 2.8 times too large."""
    assert close(gradient(model), 14 * expected(model))


def test_a_micro_batch_of_padding_weighs_nothing(model):
    tell_routers(model, lambda: MicroBatch(torch.tensor(0), torch.ones_like(PADDING)))
    assert torch.equal(gradient(model), torch.zeros(EXPERTS, 8))


def test_a_layer_that_is_computed_again_weighs_its_own_micro_batch(model):
    """Pipeline stages see the next micro batches before they go back."""
    for counted in (5, 3):
        tell_routers(model, lambda counted=counted: MicroBatch(torch.tensor(counted)))
        with torch.no_grad():
            model[0](HIDDEN)
    assert close(gradient(model), 5 * expected(model))
    assert close(gradient(model), 3 * expected(model))


def test_the_largest_scores_of_a_softmax_are_normalised_as_in_transformers(model):
    logits = torch.nn.functional.linear(HIDDEN, model[0].weight).reshape(-1, EXPERTS)
    values, places = torch.softmax(logits, -1).topk(TOP, -1)
    probabilities, chosen = model.eval()[0](HIDDEN)
    assert torch.equal(chosen, torch.zeros_like(chosen).scatter(1, places, True))
    assert close(probabilities[chosen].view(-1, TOP).sum(-1), torch.ones(14))
    assert close(probabilities.gather(1, places), values / values.sum(-1, keepdim=True))


def test_a_dense_model_is_told_nothing():
    tell_routers(torch.nn.Linear(1, 1), lambda: pytest.fail("asked for"))


def test_what_our_layers_cannot_do_is_named():
    assert moe_problems(make_config()) == [] == moe_problems(SimpleNamespace(num_moe_experts=None))
    refused = {
        "tensor_model_parallel_size": 2,
        "moe_expert_capacity_factor": 1.0,
        "moe_router_load_balancing_type": "seq_aux_loss",
        "moe_z_loss_coeff": 1e-3,
        "moe_input_jitter_eps": 0.1,
        "moe_router_force_biased": 0.1,
        "moe_router_force_load_balancing": True,
        "moe_grouped_gemm": True,
        "moe_permute_fusion": True,
        "moe_router_fusion": True,
    }
    config = make_config(transformer_impl="local")
    for name, value in refused.items():
        (message,) = moe_problems(SimpleNamespace(**vars(config) | {name: value}))
        assert f"--{name.replace('_', '-')}" in message
