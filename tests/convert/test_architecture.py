"""config.json and Megatron's arguments: what is carried over, and what is refused by name."""

import dataclasses

import pytest
import yaml
from support.checkpoints import CONFIG, KINDS
from support.families import CASES, config_of

from megatron_chimed.convert import architecture as arch
from megatron_chimed.convert.families import FAMILIES
from megatron_chimed.convert.megatron_args import from_megatron_args, to_megatron, to_megatron_args, to_options
from megatron_chimed.convert.rope import Rope
from megatron_chimed.errors import InputError

BASE = CONFIG | {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}


def read(**changes):
    return arch.from_hf(BASE | changes, "config.json")


MODELS = {kind: BASE | changes for kind, changes in KINDS.items()} | {name: config_of(name) for name in CASES}


@pytest.mark.parametrize("kind", MODELS)
def test_the_architecture_survives_both_ways(kind):
    model = arch.from_hf(MODELS[kind], "config.json")
    config = arch.to_hf(model, "bfloat16", {"eos_token_id": 2})
    assert arch.from_hf(config, "config.json") == model
    assert (
        from_megatron_args(to_megatron_args(to_megatron(model), to_options(model)), model.head, "checkpoint") == model
    )
    assert config["torch_dtype"] == "bfloat16" and config["eos_token_id"] == 2


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_reads_the_config_that_is_written(kind, tmp_path):
    from transformers import AutoConfig

    from megatron_chimed.jsonl import write_json

    model = arch.from_hf(MODELS[kind], "config.json")
    write_json(tmp_path / "config.json", arch.to_hf(model, "float32", {}))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert arch.from_hf(loaded.to_dict(), "config.json") == model
    assert loaded.rope_parameters["rope_theta"] == model.rope.base
    assert loaded.rope_parameters["rope_type"] == model.rope.kind


def test_both_spellings_of_rope_are_read():
    old = read(rope_theta=500000.0, rope_scaling={"type": "linear", "factor": 4})
    new = read(rope_parameters={"rope_theta": 500000.0, "rope_type": "linear", "factor": 4.0})
    assert old == new and old.rope == Rope(500000, "linear", 4.0)


def test_megatron_gets_arguments_that_its_own_parser_takes():
    import argparse

    from megatron.training.arguments import add_megatron_arguments

    from megatron_chimed.config import Located
    from megatron_chimed.training.arguments import to_argv

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    for config in MODELS.values():
        model = arch.from_hf(config, "config.json")
        settings = yaml.safe_load(yaml.safe_dump(to_megatron(model)))
        words = to_argv({key: Located(value, "model.yaml") for key, value in settings.items()}, parser)
        parsed = parser.parse_args(words)
        assert parsed.num_layers == config["num_hidden_layers"] and parsed.layernorm_epsilon == model.norm_epsilon
        values = vars(parsed) | {"padded_vocab_size": parsed.vocab_size, "chimed": to_options(model)}
        assert from_megatron_args(argparse.Namespace(**values), model.head, "arguments") == model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not supported; supported are LlamaForC"),
        ({"architectures": None}, "architecture None is not supported"),
        ({"hidden_size": None}, "hidden_size is None; expected a whole number above 0"),
        ({"vocab_size": "103"}, "vocab_size is '103'"),
        ({"num_key_value_heads": 3}, "num_attention_heads (4) is no multiple of num_key_value_heads (3)"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"rope_theta": 10000.5}, "rope_theta is 10000.5; Megatron takes a whole number"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1.5}}, "takes a whole number"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor None; expected a number above 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ],
)
def test_what_megatron_cannot_do_is_refused_by_name(changes, message):
    with pytest.raises(InputError) as caught:
        read(**changes)
    assert message in str(caught.value) and str(caught.value).startswith("config.json: ")


def test_all_faults_are_told_at_once():
    with pytest.raises(InputError) as caught:
        read(hidden_size=0, hidden_act="gelu", mlp_bias=True)
    assert all(name in str(caught.value) for name in ("hidden_size", "hidden_act", "mlp_bias"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization": "LayerNorm"}, "normalization is 'LayerNorm'"),
        ({"num_experts": 8}, "num_experts is 8"),
        ({"qk_layernorm": True, "add_qkv_bias": True}, "is True; Hugging Face's Qwen. has False"),
        ({"num_layers": None}, "num_layers is missing"),
    ],
)
def test_a_megatron_model_that_is_no_llama_is_refused(change, message):
    args = to_megatron_args(to_megatron(read()), {})
    vars(args).update(change)
    with pytest.raises(InputError, match=message):
        from_megatron_args(args, "lm", "checkpoint")


def test_the_reward_head_has_its_own_class():
    model = read(architectures=["LlamaForSequenceClassification"])
    assert model.head == "reward"
    config = arch.to_hf(dataclasses.replace(model), "float32", {})
    assert config["architectures"] == ["LlamaForSequenceClassification"] and len(config["id2label"]) == 1


def test_a_head_size_that_config_json_leaves_out_is_that_of_transformers_class():
    """Qwen3's is 128 whatever the hidden size; others divide."""
    from transformers import Qwen3Config

    plain = config_of("qwen3 head size of its own")
    del plain["head_dim"]
    model = arch.from_hf(plain, "config.json")
    assert model.sizes.head_dim == Qwen3Config(**plain).head_dim == 128 != plain["hidden_size"] // 4
    assert arch.from_hf(config_of("qwen2 tied"), "config.json").sizes.head_dim == 12


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_transformers_takes_for_an_absent_key_stands_in_the_page(family):
    from transformers import AutoConfig

    defaults = AutoConfig.for_model(family.name)
    assert set(family.hf_defaults) >= {
        key
        for key, value in {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}.items()
        if getattr(defaults, key) != value
    }
    assert all(getattr(defaults, key) == value for key, value in family.hf_defaults.items())
