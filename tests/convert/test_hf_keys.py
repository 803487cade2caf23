"""Keys of config.json: what may stand there, and that everything else is refused by its name."""

import json

import pytest
from support.checkpoints import CONFIG, KINDS

from megatron_chimed.convert import architecture as arch
from megatron_chimed.convert.families.llama import LLAMA
from megatron_chimed.convert.hf_keys import HARMLESS, READ
from megatron_chimed.errors import InputError

BASE = CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}

LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-13b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 13824,
    "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 40, "num_hidden_layers": 40,
    "num_key_value_heads": 40, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
"""As transformers wrote it in July 2023."""

LLAMA_1 = {
    "architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "initializer_range": 0.02, "max_sequence_length": 2048,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": -1,
    "rms_norm_eps": 1e-06, "torch_dtype": "float16", "transformers_version": "4.27.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
"""Of the spring before."""

ZIYA_2 = LLAMA_2 | {
    "_name_or_path": "Ziya2-13B-Base", "pad_token_id": 0, "rotary_emb_base": 10000, "rotary_pct": 1,
    "use_parallel_residual": False, "torch_dtype": "bfloat16", "vocab_size": 39424,
}  # fmt: skip
"""Ziya2's sizes, with the keys that Fengshenbang's own LLaMA has beside those of transformers."""

LLAMA_3 = LLAMA_2 | {
    "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "num_key_value_heads": 8, "head_dim": 128,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
                     "original_max_position_embeddings": 8192},
}  # fmt: skip

EVERYTHING_OF_2023 = LLAMA_2 | {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {}, "is_encoder_decoder": False,
    "is_decoder": False, "cross_attention_hidden_size": None, "add_cross_attention": False,
    "tie_encoder_decoder": False, "max_length": 20, "min_length": 0, "do_sample": False, "early_stopping": False,
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "num_return_sequences": 1, "chunk_size_feed_forward": 0,
    "output_scores": False, "return_dict_in_generate": False, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False, "exponential_decay_length_penalty": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "tokenizer_class": None,
    "prefix": None, "pad_token_id": None, "sep_token_id": None, "decoder_start_token_id": None,
    "task_specific_params": None, "problem_type": None,
}  # fmt: skip
"""With the keys of `PretrainedConfig.to_dict` of transformers 4.31."""


@pytest.mark.parametrize("config", [LLAMA_1, LLAMA_2, ZIYA_2, LLAMA_3, EVERYTHING_OF_2023], ids=range(5))
def test_the_folders_of_2023_are_read(config):
    model = arch.from_hf(config, "config.json")
    assert model.sizes.vocab == config["vocab_size"] and model.family is LLAMA


def test_all_that_the_installed_transformers_writes_is_read():
    from transformers import LlamaConfig

    written = LlamaConfig(**CONFIG).to_dict()
    assert len(written) > 20
    model = arch.from_hf(written | {"architectures": ["LlamaForCausalLM"]}, "config.json")
    assert model == arch.from_hf(BASE, "config.json")


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_exporter_writes_is_read_again(kind):
    for name in ("LlamaForCausalLM", "LlamaForSequenceClassification"):
        model = arch.from_hf(BASE | KINDS[kind] | {"architectures": [name]}, "config.json")
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1)
        written = json.loads(json.dumps(arch.to_hf(model, "bfloat16", ids)))
        assert arch.from_hf(written, "config.json") == model


UNKNOWN = {
    "qk_norm": True,
    "use_qk_norm": False,  # even so: nobody knows what it does in another code
    "qkv_bias": True,
    "attention_out_bias": True,
    "num_local_experts": 8,
    "logit_scale": 0.5,
    "residual_multiplier": 0.22,
    "attn_logit_softcapping": 50.0,
    "layer_types": ["full_attention"],
    "no_rope_layers": [1, 0],
    "max_window_layers": 28,
    "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
    "log_scale": None,
}
ONE_VALUE = {
    "attention_bias": True,
    "attention_dropout": 0.1,
    "hidden_act": "gelu",
    "is_encoder_decoder": True,
    "mlp_bias": True,
    "model_type": "baichuan",
    "partial_rotary_factor": 0.5,
    "pretraining_tp": 2,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"bits": 4},
    "rope_interleaved": True,
    "rotary_pct": 0.25,
    "sliding_window": 4096,
    "use_parallel_residual": True,
    "use_sliding_window": True,
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_an_unknown_key_is_refused_with_file_name_value_and_what_to_do(key):
    value = UNKNOWN[key]
    with pytest.raises(InputError) as caught:
        arch.from_hf(BASE | {key: value}, "hf/config.json")
    start = f"hf/config.json: {key} is {value!r}, a key that is not known and may change the model"
    assert str(caught.value) == f"{start}; remove it if it changes nothing"


@pytest.mark.parametrize("key", ONE_VALUE)
def test_a_key_that_must_have_one_value_is_refused_with_another(key):
    with pytest.raises(InputError) as caught:
        arch.from_hf(BASE | {key: ONE_VALUE[key]}, "hf/config.json")
    assert str(caught.value).startswith(f"hf/config.json: {key} is {ONE_VALUE[key]!r}; only ")
    for allowed in ((LLAMA.fixed_hf_keys | {"model_type": "llama"}).get(key), None):
        assert arch.from_hf(BASE | {key: allowed}, "config.json") == arch.from_hf(BASE, "config.json")


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_keys_inside_the_rope_settings_are_held_to_the_same(name):
    good = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    assert arch.from_hf(BASE | {name: good}, "config.json").rope.factor == 2.0
    for bad, message in (
        ({"partial_rotary_factor": 0.5}, "rope has partial_rotary_factor 0.5; only 1.0 is supported"),
        ({"mrope_section": [16, 24]}, "rope's mrope_section is [16, 24], a key that is not known"),
    ):
        with pytest.raises(InputError) as caught:
            arch.from_hf(BASE | {name: good | bad}, "config.json")
        assert message in str(caught.value)


def test_rope_settings_that_contradict_each_other_or_are_none_are_refused():
    one, other = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(InputError, match="rope_parameters and rope_scaling are both given, and differ; keep one"):
        arch.from_hf(BASE | {"rope_parameters": one, "rope_scaling": other}, "config.json")
    assert arch.from_hf(BASE | {"rope_parameters": one, "rope_scaling": one}, "config.json").rope.factor == 2.0
    with pytest.raises(InputError, match=r"rope_scaling is \[1\]; expected an object"):
        arch.from_hf(BASE | {"rope_scaling": [1]}, "config.json")


def test_models_of_other_families_are_refused_even_under_the_class_of_llama():
    baichuan = LLAMA_2 | {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "model_max_length": 4096}
    with pytest.raises(InputError, match="'BaichuanForCausalLM' is not supported"):
        arch.from_hf(baichuan, "config.json")
    with pytest.raises(InputError) as caught:
        arch.from_hf(baichuan | {"architectures": ["LlamaForCausalLM"], "z_loss_weight": 0}, "config.json")
    assert all(f"{key} is " in str(caught.value) for key in ("model_type", "model_max_length", "z_loss_weight"))


def test_no_key_is_of_two_kinds():
    fixed = LLAMA.fixed_hf_keys.keys()
    assert not READ & HARMLESS and not READ & fixed and not fixed & (HARMLESS | LLAMA.known_hf_keys)


def test_control_every_key_in_the_list_of_harmless_ones_gives_the_same_model():
    plain = arch.from_hf(BASE, "config.json")
    for key in sorted(HARMLESS | LLAMA.known_hf_keys | {"_anything"}):
        assert arch.from_hf(BASE | {key: "something"}, "config.json") == plain
