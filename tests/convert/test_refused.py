"""Models that are not served: refused by name, each with its reason."""

import pytest
from guards import tree
from support.checkpoints import CONFIG

from megatron_chimed.convert import architecture as arch
from megatron_chimed.convert.families import FAMILIES
from megatron_chimed.convert.families.refused import ARCHITECTURES, KEYS
from megatron_chimed.errors import InputError

LLAMA, QWEN2, QWEN3, MISTRAL = (
    CONFIG | {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower()}
    for name in ("Llama", "Qwen2", "Qwen3", "Mistral")
)


def refusal(config: dict) -> str:
    with pytest.raises(InputError) as caught:
        arch.from_hf(config, "hf/config.json")
    message = str(caught.value)
    assert message.startswith("hf/config.json: ") and "\n" not in message
    return message


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_that_is_not_served_is_refused_with_its_reason(name):
    for config in (LLAMA | {"architectures": [name]}, {"architectures": [name]}):
        message = refusal(config)
        assert f"architecture {name!r} is not supported ({ARCHITECTURES[name]}); supported are LlamaFor" in message
    assert not any(name in family.architectures for family in FAMILIES)


SHAPES = {
    "a LLaMA with biases of attention": (LLAMA | {"attention_bias": True}, "attention_bias is True", KEYS),
    "a LLaMA with biases of the MLP": (LLAMA | {"mlp_bias": True}, "mlp_bias is True", KEYS),
    "a Qwen3 with biases of attention": (QWEN3 | {"attention_bias": True}, "attention_bias is True", KEYS),
    "dynamic positions": (
        LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 6.0}},
        "rope scaling of type 'dynamic' is not supported (its frequencies follow the length of each text)",
        None,
    ),
    "long positions": (
        QWEN2 | {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        "rope scaling of type 'longrope' is not supported (its",
        None,
    ),
    "half a head rotated": (QWEN3 | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5", KEYS),
    "half a head rotated, of transformers 5": (
        LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "rope has partial_rotary_factor 0.5; only 1.0 is supported (all of a head is rotated)",
        None,
    ),
    "Mistral 7B v0.1": (MISTRAL | {"sliding_window": 4096}, "sliding_window is 4096", KEYS),
    "a Mistral whose window nobody mentions": (MISTRAL, "sliding_window is 4096", KEYS),
    "a window in use": (QWEN2 | {"use_sliding_window": True}, "use_sliding_window is True", KEYS),
    "layers with a window": (
        QWEN3 | {"layer_types": ["full_attention", "sliding_attention"] * 2},
        "layer_types is ['full_attention', 'sliding_attention', ",
        KEYS,
    ),
    "quantised weights": (
        QWEN2 | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantization_config is {'bits': 4, 'quant_method': 'gptq'}",
        KEYS,
    ),
    "positions of pictures": (QWEN2 | {"use_mrope": True}, "use_mrope is True; only False", None),
    "another family under the class of Qwen2": (
        QWEN2 | {"model_type": "qwen2_moe", "num_experts": 60},
        "model_type is 'qwen2_moe'; only 'qwen2' is supported; num_experts is 60, a key that is not known",
        None,
    ),
    "a scale of embeddings": (LLAMA | {"scale_emb": 12}, "scale_emb is 12, a key that is not known", None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_key_that_no_family_has_is_refused_with_its_reason(name):
    config, start, reasons = SHAPES[name]
    message = refusal(config)
    assert start in message
    if reasons is not None:
        assert f"is supported ({reasons[start.split()[0]]})" in message


def test_control_the_same_configs_without_it_are_read():
    for config in (LLAMA, QWEN2, QWEN3 | {"head_dim": 16}, MISTRAL | {"sliding_window": None}):
        assert arch.from_hf(config, "config.json").family.name == config["model_type"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), True, "8", [2], {}, -1, 0])
@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings", "beta_fast", "attention_factor"])
def test_a_number_of_yarn_that_is_none_is_named(key, bad):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, key: bad}
    assert f"rope scaling has {key} {bad!r}; expected a number above 0" in refusal(QWEN2 | {"rope_scaling": yarn})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), True, "8", None, [1]])
def test_a_base_that_is_no_number_is_named(bad):
    assert f"rope_theta is {bad!r}; Megatron takes a whole number" in refusal(LLAMA | {"rope_theta": bad})


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading of docs/families.md."""
    text = tree.read("docs/families.md").partition(f"\n## {heading}\n")[2].partition("|---|")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[1:]]


def test_the_page_for_people_lists_what_is_served_and_what_is_not():
    assert {tuple(row) for row in rows("Refused")} == {(f"`{name}`", why) for name, why in ARCHITECTURES.items()}
    written = {row[0]: row[1] for row in rows("Served")}
    classes = {
        family.title: ", ".join(f"`{name}`" for name in family.architectures if name != "LLaMAForCausalLM")
        for family in FAMILIES
    }
    assert written == classes
