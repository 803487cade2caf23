"""The families' pages: that they are consistent, and that a model's family is told from its arguments."""

import importlib
import pkgutil

import pytest

from megatron_chimed.convert import families
from megatron_chimed.convert.architecture import from_hf
from megatron_chimed.convert.families import FAMILIES, of_architecture, of_args
from megatron_chimed.convert.families.blocks import ABSENT, PLAIN_ARGS
from megatron_chimed.convert.families.llama import LLAMA
from megatron_chimed.convert.families.mistral import MISTRAL
from megatron_chimed.convert.families.qwen2 import QWEN2
from megatron_chimed.convert.families.qwen3 import QWEN3
from megatron_chimed.convert.family import Family
from megatron_chimed.convert.hf_keys import HARMLESS, READ
from megatron_chimed.errors import InputError

PAGES = {one.name for one in pkgutil.iter_modules(families.__path__)} - {"blocks", "refused"}


def test_every_page_is_listed_and_no_class_is_of_two_families():
    for name in PAGES:
        page = importlib.import_module(f"{families.__name__}.{name}")
        found = [one for one in vars(page).values() if isinstance(one, Family)]
        assert found == [family for family in FAMILIES if family.name == name]
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(names) == len(set(names))
    assert all(of_architecture(name)[0] is family for family in FAMILIES for name in family.architectures)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_key_is_of_two_kinds_and_each_head_has_a_class(family):
    fixed = family.fixed_hf_keys.keys()
    assert not READ & fixed and not fixed & (HARMLESS | family.known_hf_keys)
    assert set(family.written_hf_keys) <= fixed and set(family.architectures.values()) == {"lm", "reward"}
    assert PLAIN_ARGS.keys() <= family.fixed_args.keys()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_told_by_its_arguments_or_by_its_name(family):
    assert of_args(family.fixed_args, family.name) == (family, [])
    told = of_args(family.fixed_args)[0]
    assert told is next(one for one in FAMILIES if one.fixed_args == family.fixed_args)


def test_mistral_is_a_llama_unless_it_is_named():
    assert of_args(MISTRAL.fixed_args)[0] is LLAMA


def test_arguments_of_no_family_are_named_and_so_is_a_family_that_there_is_not():
    family, problems = of_args(ABSENT | {"qk_layernorm": True, "mtp_num_layers": 1})
    assert family is QWEN3 and problems == ["mtp_num_layers is 1; Hugging Face's Qwen3 has None"]
    family, problems = of_args(ABSENT | {"num_experts": 8})
    assert family is LLAMA and problems == ["num_experts is 8; Hugging Face's LLaMA has None"]
    assert of_args(ABSENT, "qwen3_moe")[1] != []
    with pytest.raises(InputError, match="family 'mamba' is not known; expected one of llama, qwen2, qwen3, "):
        of_args({}, "mamba")


QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
QWEN25_05B = QWEN25_7B | {
    "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24, "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936,
}  # fmt: skip
QWEN3_8B = QWEN25_7B | {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128, "hidden_size": 4096,
    "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "vocab_size": 151936,
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0", "use_cache": True,
    "vocab_size": 32768,
}  # fmt: skip
LONGER = {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}
"""What Qwen2.5's description tells to add for texts above 32,768 tokens."""
PUBLISHED = {
    "Qwen2.5 7B": (QWEN25_7B, QWEN2, 7_615_616_512),
    "Qwen2.5 7B for long texts": (QWEN25_7B | LONGER, QWEN2, 7_615_616_512),
    "Qwen2.5 0.5B": (QWEN25_05B, QWEN2, 494_032_768),
    "R1-Distill-Qwen-7B": (QWEN25_7B | {"use_mrope": False, "rope_theta": 10000}, QWEN2, 7_615_616_512),
    "Qwen3 8B": (QWEN3_8B, QWEN3, 8_190_735_360),
    "Mistral 7B v0.3": (MISTRAL_7B, MISTRAL, 7_248_023_552),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_read_and_have_the_published_number_of_weights(name):
    config, family, count = PUBLISHED[name]
    model = from_hf(config, "config.json")
    assert model.family is family and family.count(model.head, model.tied, model.sizes) == count
    assert model.rope.kind == ("yarn" if "long" in name else "default")
