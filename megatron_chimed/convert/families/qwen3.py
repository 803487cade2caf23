"""Qwen3 (dense): LLaMA's decoder with a norm of each query and key over its head, and a head size of its own.

HuatuoGPT-3 is of this family. Source: transformers, `models/qwen3/modeling_qwen3.py`.
"""

from megatron_chimed.convert.families import blocks
from megatron_chimed.convert.family import Family

QWEN3 = Family(
    name="qwen3",
    title="Qwen3",
    architectures={"Qwen3ForCausalLM": "lm", "Qwen3ForSequenceClassification": "reward"},
    body=blocks.body(*blocks.attention(qk_norm=True), *blocks.mlp()),
    heads=blocks.HEADS,
    stateful=blocks.STATEFUL,
    fixed_args=blocks.PLAIN_ARGS | {"qk_layernorm": True},
    fixed_hf_keys={
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "layer_types": ["full_attention"],
        "partial_rotary_factor": 1.0,
        "use_sliding_window": False,
    },
    known_hf_keys=frozenset({"sliding_window", "max_window_layers"}),  # without effect while use_sliding_window is off
    hf_defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
    written_hf_keys=("attention_bias", "use_sliding_window"),
)
