"""A config.json of any types is read, or refused in one line; what would be misread is refused."""

import json

import pytest
import transformers

from megatron_chimed.convert.architecture import from_hf
from megatron_chimed.convert.megatron_args import to_megatron
from megatron_chimed.errors import InputError

ODD = [None, "", "x", "4", "true", True, False, 0, -1, 1.5, float("inf"), float("nan"), [], ["x"], {}, {"a": 1}, 10**30]
SIZES = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 100, "sliding_window": None,
}  # fmt: skip
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "attention_factor": 1.1},
}
FAMILIES = ("Llama", "Qwen2", "Qwen3", "Qwen3Moe", "Mistral")


def config_of(family):
    config = getattr(transformers, f"{family}Config")(**SIZES)
    return json.loads(config.to_json_string()) | {"architectures": [f"{family}ForCausalLM"]}


def read(config):
    """The architecture, None where it is refused in one line."""
    try:
        architecture = from_hf(config, "config.json")
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith("config.json: ")
        return None
    to_megatron(architecture)
    return architecture


@pytest.mark.parametrize("family", FAMILIES)
def test_no_type_of_a_value_is_a_traceback(family):
    config = config_of(family)
    assert read(config)
    for key in [*config, "rope_scaling", "rope_theta"]:
        for value in ODD:
            read(config | {key: value})
    for kind, settings in ROPES.items():
        rope = {"rope_type": kind, "rope_theta": 10000.0, **settings}
        assert read(config | {"rope_parameters": rope})
        for key in (*rope, "truncate", "mscale"):
            for value in ODD:
                read(config | {"rope_parameters": rope | {key: value}})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or false"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; expected a number above 0"),
        ({"max_position_embeddings": 1.5}, "max_position_embeddings is 1.5; expected a whole number above 0"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 1000.*; expected a whole number above 0"),
        ({"rope_scaling": "linear", "rope_parameters": None}, "rope_scaling is 'linear'; expected an object"),
        ({"rope_parameters": ["x"]}, r"rope_parameters is \['x'\]; expected an object"),
        ({"rope_parameters": None, "rope_theta": float("inf")}, "rope_theta is inf; Megatron takes a whole number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "rope_parameters and rope_scaling are both given"),
        ({"rope_theta": 5000.0}, "rope_theta is 5000.0, and 10000.0 in the rope settings; keep one of them"),
    ],
)
def test_what_would_be_misread_is_refused_by_name(change, fault):
    with pytest.raises(InputError, match=fault):
        from_hf(config_of("Llama") | change, "config.json")
