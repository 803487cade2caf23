"""Rotary positions: config.json, Megatron's arguments and our options say the same, and transformers computes it."""

import argparse
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import _yarn_get_concentration_factor
from support.families import config_of
from transformers import Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_chimed.convert import architecture as arch
from megatron_chimed.convert import rope
from megatron_chimed.convert.megatron_args import from_megatron_args, to_megatron, to_megatron_args, to_options
from megatron_chimed.convert.rope import Rope
from megatron_chimed.errors import InputError
from megatron_chimed.models.gpt import check_layers
from megatron_chimed.models.options import ModelOptions, stated

PLAIN = config_of("qwen2 tied")


def read(scaling: dict | None, **changes):
    return arch.from_hf(PLAIN | {"rope_scaling": scaling} | changes, "config.json")


positive = st.floats(0.25, 64, allow_nan=False)
YARN = st.fixed_dictionaries(
    {"rope_type": st.just("yarn"), "factor": st.floats(1.125, 64)},
    optional={
        "original_max_position_embeddings": st.integers(8, 10**6),
        "attention_factor": st.floats(0.5, 3),
        "beta_fast": positive,
        "beta_slow": positive,
        "mscale": st.floats(0.5, 2),
        "mscale_all_dim": st.floats(0.5, 2),
        "truncate": st.booleans(),
    },
)


@given(YARN)
def test_yarn_survives_both_ways_and_has_the_attention_factor_of_transformers(scaling):
    model = read(scaling)
    args = to_megatron_args(yaml.safe_load(yaml.safe_dump(to_megatron(model))), to_options(model))
    assert from_megatron_args(args, "lm", "args") == model
    assert arch.from_hf(arch.to_hf(model, "float32", {}), "config.json") == model
    config = Qwen2Config(**PLAIN, rope_scaling=dict(scaling))
    _, expected = ROPE_INIT_FUNCTIONS["yarn"](config)
    # Megatron's own function of what its arguments say
    found = _yarn_get_concentration_factor(args.rotary_scaling_factor, getattr(args, "mscale", 1.0), 0.0)
    assert found == pytest.approx(expected, rel=1e-9) and model.rope.attention_factor == pytest.approx(expected)
    assert model.rope.original_positions == config.rope_parameters["original_max_position_embeddings"]


@given(positive, st.integers(8, 10**6), st.floats(0.5, 2), st.floats(0.125, 60))
def test_llama3_survives_both_ways(factor, original, low, more):
    scaling = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original}
    model = read(scaling | {"low_freq_factor": low, "high_freq_factor": low + more})
    options = to_options(model)
    assert from_megatron_args(to_megatron_args(to_megatron(model), options), "lm", "args") == model
    assert arch.from_hf(arch.to_hf(model, "float32", {}), "config.json") == model
    assert stated(ModelOptions(**options)) == options


def test_megatrons_own_llama3_needs_no_options():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert to_options(read(scaling | {"original_max_position_embeddings": 8192})) == {}


def test_what_yarn_leaves_out_is_as_in_transformers():
    model = read({"rope_type": "yarn", "factor": 4.0})
    assert model.rope.original_positions == PLAIN["max_position_embeddings"]
    ratio = read({"rope_type": "yarn", "original_max_position_embeddings": 16})
    assert ratio.rope.factor == PLAIN["max_position_embeddings"] / 16
    assert (ratio.rope.beta_fast, ratio.rope.beta_slow, ratio.rope.truncate) == (32.0, 1.0, True)
    assert "attention_factor" not in arch.to_hf(ratio, "float32", {})["rope_scaling"]


def test_megatrons_defaults_stand_for_arguments_that_a_model_yaml_leaves_out():
    args = argparse.Namespace(position_embedding_type="yarn", rotary_base=10000, rotary_scaling_factor=2.0)
    found = rope.from_args(vars(args), ModelOptions())
    wanted = Rope(10000, "yarn", 2.0, 4096, beta_fast=32.0, beta_slow=1.0)
    assert found == Rope(**vars(wanted) | {"attention_factor": round(rope.mscale(2.0), rope.DIGITS)})


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ({"position_embedding_type": "none"}, {}, "position_embedding_type is 'none'; expected rope or yarn"),
        ({"use_rope_scaling": True, "rotary_seq_len_interpolation_factor": 2}, {}, "more than one is given; keep one"),
        ({"use_rope_scaling": True, "position_embedding_type": "yarn"}, {}, "more than one is given; keep one"),
        ({}, {"llama3_low_freq_factor": 2.0}, "llama3_low_freq_factor is 2.0, and use_rope_scaling is not given"),
        ({"use_rope_scaling": True}, {"llama3_high_freq_factor": 0.5}, "is not above llama3_low_freq_factor"),
        ({"use_rope_scaling": True}, {"llama3_low_freq_factor": -1.0}, "is -1.0; expected a number above 0"),
    ],
)
def test_arguments_that_no_scaling_has_are_named(args, options, message):
    found = rope.problems_of_args(args, ModelOptions(**options))
    assert len(found) == 1 and message in found[0]


def test_control_arguments_of_one_scaling_are_not():
    assert rope.problems_of_args({"use_rope_scaling": True}, ModelOptions(llama3_low_freq_factor=2.0)) == []
    assert rope.problems_of_args({"position_embedding_type": "yarn"}, ModelOptions()) == []


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.5}, "attention_factor 1.5 with factor 1.0"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 1}, "truncate 1; expected true or false"),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10.5}, "10.5; expected a whole"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}, "more than low_freq_fac"),
    ],
)
def test_constants_that_make_no_sense_or_that_megatron_has_not_are_named(scaling, message):
    with pytest.raises(InputError) as caught:
        read(scaling)
    assert message in str(caught.value)


def test_the_fused_kernel_that_leaves_out_yarns_attention_factor_is_refused():
    layers = {"transformer_impl": "transformer_engine", "apply_rope_fusion": True, "num_moe_experts": None}
    with pytest.raises(ValueError, match="--position-embedding-type yarn needs --no-rope-fusion"):
        check_layers(SimpleNamespace(**layers, yarn_rotary_scaling_factor=4.0), ModelOptions())
    check_layers(SimpleNamespace(**layers), ModelOptions())
    check_layers(
        SimpleNamespace(**layers | {"apply_rope_fusion": False}, yarn_rotary_scaling_factor=4.0), ModelOptions()
    )
