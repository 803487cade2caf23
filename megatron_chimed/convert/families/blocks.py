"""What the tables of several families have in common: the parts of a decoder layer, and what none of them has."""

from typing import Any

from megatron_chimed.convert.family import LAYER, Entry
from megatron_chimed.convert.sizes import Head

HF_LAYER = "model.layers.{layer}."

DECODER: dict[str, Any] = {"normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False}
"""Arguments that a model YAML must state, as Megatron's defaults are others. A family may have more of them."""

ABSENT: dict[str, Any] = {
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "layernorm_zero_centered_gamma": False,
    "apply_layernorm_1p": False,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "num_experts": None,
    "moe_layer_freq": 1,
    "moe_shared_expert_intermediate_size": None,
    "moe_router_score_function": "softmax",
    "moe_router_enable_expert_bias": False,
    "moe_router_num_groups": None,
    "moe_router_group_topk": None,
    "moe_router_topk_limited_devices": None,
    "moe_router_topk_scaling_factor": None,
    "moe_expert_capacity_factor": None,
    "moe_apply_probs_on_input": False,
    "moe_latent_size": None,
    "moe_mlp_glu_interleave_size": None,
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
}
"""Megatron's defaults for what a plain decoder has not; a family that has one of them states it."""

PLAIN_ARGS = DECODER | ABSENT
"""Of a decoder with RMSNorm and SwiGLU, without biases, norms of queries and keys, or experts."""


def same(megatron: str, hf: str, *shape: str | int, split_axis: int | None = None) -> Entry:
    """An entry for a weight that both sides keep alike."""
    return Entry(megatron, (hf,), (shape,), split_axis=split_axis)


def attention(*, qkv_bias: bool = False, qk_norm: bool = False) -> tuple[Entry, ...]:
    """A layer's attention, with the norm before it: biases of query, key and value, norms of each query and key."""
    ours, theirs = LAYER + "self_attention.", HF_LAYER + "self_attn."
    entries = [
        same(ours + "linear_qkv.layer_norm_weight", HF_LAYER + "input_layernorm.weight", "hidden"),
        Entry(
            ours + "linear_qkv.weight",
            tuple(theirs + f"{part}_proj.weight" for part in "qkv"),
            (("q_dim", "hidden"), ("kv_dim", "hidden"), ("kv_dim", "hidden")),
            "qkv",
            split_axis=0,
        ),
    ]
    if qkv_bias:
        names = tuple(theirs + f"{part}_proj.bias" for part in "qkv")
        shapes = (("q_dim",), ("kv_dim",), ("kv_dim",))
        entries.append(Entry(ours + "linear_qkv.bias", names, shapes, "qkv", split_axis=0))
    if qk_norm:
        for part in "qk":
            entries.append(same(ours + f"{part}_layernorm.weight", theirs + f"{part}_norm.weight", "head_dim"))
    proj = same(ours + "linear_proj.weight", theirs + "o_proj.weight", "hidden", "q_dim", split_axis=1)
    return (*entries, proj)


def mlp() -> tuple[Entry, ...]:
    """A layer's SwiGLU, with the norm before it."""
    return (
        same(LAYER + "mlp.linear_fc1.layer_norm_weight", HF_LAYER + "post_attention_layernorm.weight", "hidden"),
        Entry(
            LAYER + "mlp.linear_fc1.weight",
            tuple(HF_LAYER + f"mlp.{part}_proj.weight" for part in ("gate", "up")),
            (("ffn", "hidden"), ("ffn", "hidden")),
            "rows",
            split_axis=0,
        ),
        same(LAYER + "mlp.linear_fc2.weight", HF_LAYER + "mlp.down_proj.weight", "hidden", "ffn", split_axis=1),
    )


def experts() -> tuple[Entry, ...]:
    """A layer's router and experts, with the norm before them: every expert a SwiGLU."""
    ours, theirs = LAYER + "mlp.experts.experts.", HF_LAYER + "mlp.experts.{expert}."
    return (
        same(LAYER + "pre_mlp_layernorm.weight", HF_LAYER + "post_attention_layernorm.weight", "hidden"),
        same(LAYER + "mlp.router.weight", HF_LAYER + "mlp.gate.weight", "experts", "hidden"),
        Entry(
            ours + "linear_fc1.weight",
            tuple(theirs + f"{part}_proj.weight" for part in ("gate", "up")),
            (("expert_ffn", "hidden"), ("expert_ffn", "hidden")),
            "rows",
            split_axis=0,
        ),
        same(ours + "linear_fc2.weight", theirs + "down_proj.weight", "hidden", "expert_ffn", split_axis=1),
    )


def body(*layer: Entry) -> tuple[Entry, ...]:
    """Embedding, layers and the last norm."""
    vocabulary = ("model.embed_tokens.weight", "vocab", "hidden")
    return (
        same("embedding.word_embeddings.weight", *vocabulary, split_axis=0),
        *layer,
        same("decoder.final_layernorm.weight", "model.norm.weight", "hidden"),
    )


HEADS: dict[Head, Entry] = {
    "lm": same("output_layer.weight", "lm_head.weight", "vocab", "hidden", split_axis=0),
    "reward": same("reward_head.weight", "score.weight", 1, "hidden"),
}

STATEFUL_ATTENTION = tuple(LAYER + f"self_attention.{name}" for name in ("linear_qkv", "core_attention", "linear_proj"))
STATEFUL = (*STATEFUL_ATTENTION, *(LAYER + f"mlp.{name}" for name in ("linear_fc1", "linear_fc2")))
