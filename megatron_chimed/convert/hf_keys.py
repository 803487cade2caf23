"""Keys of a Hugging Face config.json: which are read, which must have one value, and which change no result.

Every other key is refused: it may turn the model into another one, and a conversion would drop that in silence.
"""

from typing import Any

from megatron_chimed.convert import routing
from megatron_chimed.convert.families import refused
from megatron_chimed.convert.family import Family
from megatron_chimed.errors import short

SIZE_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}
"""`Sizes` in config.json."""

READ = frozenset(SIZE_KEYS.values()) | {
    "architectures", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "tie_word_embeddings",
}  # fmt: skip
"""What `architecture.from_hf` and `rope.read_hf` read."""

ROPE_READ = {"attention_factor", "beta_fast", "beta_slow", "factor", "high_freq_factor", "low_freq_factor", "mscale",
             "mscale_all_dim", "original_max_position_embeddings", "rope_theta", "rope_type", "truncate",
             "type"}  # fmt: skip
"""What `rope.read_hf` reads in rope_parameters or rope_scaling."""

FIXED = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "tie_encoder_decoder": False,
}
"""Keys of any model that must have this value; a family has more."""

FILE = {"dtype", "finetuning_task", "id2label", "label2id", "num_labels", "prefix", "problem_type",
        "task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version"}  # fmt: skip
"""What a folder says of itself. Weights have their own types, and a head's shape follows from its class."""

RUNNING = {"attn_implementation", "chunk_size_feed_forward", "initializer_range", "output_attentions",
           "output_hidden_states", "return_dict", "tf_legacy_loss", "torchscript", "use_bfloat16", "use_cache",
           "use_return_dict"}  # fmt: skip
"""How transformers computes the same results, and how it starts new weights."""

TOKEN_IDS = {"bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id"}
"""They come from the tokenizer."""

GENERATION = {
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip
"""Defaults of generation, which transformers wrote into config.json before there was generation_config.json."""

HARMLESS = frozenset(FILE | RUNNING | TOKEN_IDS | GENERATION)


def refused_keys(config: dict[str, Any], rope: dict[str, Any], family: Family) -> list[str]:
    """List the keys of a config.json, and of its `rope` settings, that would make another model, with what to do.

    A key that begins with "_" is a note of transformers to itself.
    """
    fixed = FIXED | {"model_type": family.name} | family.fixed_hf_keys
    found = [
        f"{key} is {short(config[key])}; only {value!r} is supported{refused.bracketed(refused.KEYS, key)}"
        for key, value in fixed.items()
        if not _is(config.get(key), value)
    ]
    if rope.get("partial_rotary_factor", 1.0) not in (1.0, None):
        found.append(
            f"rope has partial_rotary_factor {short(rope['partial_rotary_factor'])}; only 1.0 is supported"
            + refused.bracketed(refused.KEYS, "partial_rotary_factor")
        )
    known = READ | HARMLESS | family.known_hf_keys | fixed.keys() | {*family.size_keys.values()}
    known |= {*routing.KEYS} if family.has_experts else set()
    unknown = {key: value for key, value in config.items() if key not in known and not key.startswith("_")}
    unknown |= {
        f"rope's {key}": value for key, value in rope.items() if key not in ROPE_READ | {"partial_rotary_factor"}
    }
    return found + [
        f"{key} is {short(value)}, a key that is not known and may change the model; remove it if it changes nothing"
        for key, value in unknown.items()
    ]


def _is(given: Any, fixed: Any) -> bool:
    """Whether a value stands for the only one that is supported; see `Family.fixed_hf_keys`."""
    if isinstance(fixed, list) and isinstance(given, list):
        return all(one in fixed for one in given)
    return given is None or given == fixed
