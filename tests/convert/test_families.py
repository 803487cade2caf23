"""The families' pages: that they are consistent, and that a model's family is told from its arguments."""

import pytest

from megatron_chimed.convert.families import FAMILIES, of_architecture, of_args
from megatron_chimed.convert.families.blocks import ABSENT, PLAIN_ARGS
from megatron_chimed.convert.families.llama import LLAMA
from megatron_chimed.convert.families.mistral import MISTRAL
from megatron_chimed.convert.families.qwen2 import QWEN2
from megatron_chimed.convert.families.qwen3 import QWEN3
from megatron_chimed.convert.families.qwen3_moe import QWEN3_MOE
from megatron_chimed.convert.hf_keys import HARMLESS, READ
from megatron_chimed.errors import InputError


def test_every_page_is_listed_and_no_class_is_of_two_families():
    assert set(map(id, FAMILIES)) == set(map(id, (LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE)))
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
    assert told is family or family is MISTRAL and told is LLAMA


def test_arguments_of_no_family_are_named_and_so_is_a_family_that_there_is_not():
    family, problems = of_args(ABSENT | {"qk_layernorm": True, "mtp_num_layers": 1})
    assert family is QWEN3 and problems == ["mtp_num_layers is 1; Hugging Face's Qwen3 has None"]
    family, problems = of_args(ABSENT | {"num_experts": 8})
    assert family is LLAMA and problems == ["num_experts is 8; Hugging Face's LLaMA has None"]
    assert of_args(ABSENT, "qwen3_moe")[1] != []
    with pytest.raises(InputError, match="family 'mamba' is not known; expected one of llama, qwen2, qwen3, mistral"):
        of_args({}, "mamba")
