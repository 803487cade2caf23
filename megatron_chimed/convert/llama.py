"""The LLaMA family: RMSNorm, RoPE, SwiGLU, no biases, multi-head or grouped-query attention.

Ziya2 and the other descendants of LLaMA 1 to 3 are of this family. Another family is one more such record.
"""

from megatron_chimed.convert.family import Entry, Family
from megatron_chimed.convert.tensors import merge_one, merge_qkv, merge_rows, split_one, split_qkv, split_rows

LAYER = "decoder.layers."
HF_LAYER = "model.layers.{}."


def _same(megatron: str, hf: str, *shape: str | int) -> Entry:
    """An entry for a weight that both sides keep alike."""
    return Entry(megatron, (hf,), (shape,), merge_one, split_one)


LLAMA = Family(
    name="llama",
    architectures={"LlamaForCausalLM": "lm", "LLaMAForCausalLM": "lm", "LlamaForSequenceClassification": "reward"},
    fixed_hf_keys={
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "partial_rotary_factor": 1.0,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "rotary_emb_base": 10000,  # this, rotary_pct and use_parallel_residual: of Fengshenbang's LLaMA, as Ziya is one
        "rotary_pct": 1,
        "sliding_window": None,
        "use_parallel_residual": False,
        "use_sliding_window": False,
    },
    known_hf_keys=frozenset({"max_sequence_length"}),  # of 2023; the model has max_position_embeddings
    fixed_args={
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "layernorm_zero_centered_gamma": False,
        "apply_layernorm_1p": False,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "num_experts": None,
        "mtp_num_layers": None,
        "window_size": None,
        "window_attn_skip_freq": None,
        "no_rope_freq": None,
        "multi_latent_attention": False,
        "experimental_attention_variant": None,
        "softmax_type": "vanilla",
        "qk_l2_norm": False,
        "attention_output_gate": False,
        "apply_residual_connection_post_layernorm": False,
        "glu_linear_offset": 0.0,
        "activation_func_clamp_value": None,
        "openai_gelu": False,
        "squared_relu": False,
        "quick_geglu": False,
        "use_mup": False,
        "mrope_section": None,
        "is_hybrid_model": False,
        "hybrid_layer_pattern": None,
        "hybrid_override_pattern": None,
        "heterogeneous_layers_config_path": None,
        "heterogeneous_layers_config_encoded_json": None,
        "spec": None,
    },
    body=(
        _same("embedding.word_embeddings.weight", "model.embed_tokens.weight", "vocab", "hidden"),
        _same(LAYER + "self_attention.linear_qkv.layer_norm_weight", HF_LAYER + "input_layernorm.weight", "hidden"),
        Entry(
            LAYER + "self_attention.linear_qkv.weight",
            tuple(HF_LAYER + f"self_attn.{part}_proj.weight" for part in "qkv"),
            (("q_dim", "hidden"), ("kv_dim", "hidden"), ("kv_dim", "hidden")),
            merge_qkv,
            split_qkv,
        ),
        _same(LAYER + "self_attention.linear_proj.weight", HF_LAYER + "self_attn.o_proj.weight", "hidden", "q_dim"),
        _same(LAYER + "mlp.linear_fc1.layer_norm_weight", HF_LAYER + "post_attention_layernorm.weight", "hidden"),
        Entry(
            LAYER + "mlp.linear_fc1.weight",
            tuple(HF_LAYER + f"mlp.{part}_proj.weight" for part in ("gate", "up")),
            (("ffn", "hidden"), ("ffn", "hidden")),
            merge_rows,
            split_rows,
        ),
        _same(LAYER + "mlp.linear_fc2.weight", HF_LAYER + "mlp.down_proj.weight", "hidden", "ffn"),
        _same("decoder.final_layernorm.weight", "model.norm.weight", "hidden"),
    ),
    heads={
        "lm": _same("output_layer.weight", "lm_head.weight", "vocab", "hidden"),
        "reward": _same("reward_head.weight", "score.weight", 1, "hidden"),
    },
    stateful=tuple(
        LAYER + module
        for module in (
            "self_attention.linear_qkv",
            "self_attention.core_attention",
            "self_attention.linear_proj",
            "mlp.linear_fc1",
            "mlp.linear_fc2",
        )
    ),
    buffers=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)

FAMILIES = (LLAMA,)
