"""Qwen2 and Qwen2.5: LLaMA's decoder with biases of query, key and value, which its config.json does not mention.

QwQ, the distilled R1 models of Qwen's sizes, HuatuoGPT-o1 and Baichuan-M2 are of this family.
Source: transformers, `models/qwen2/modeling_qwen2.py`.
"""

from megatron_chimed.convert.families import blocks
from megatron_chimed.convert.family import Family

QWEN2 = Family(
    name="qwen2",
    title="Qwen2",
    architectures={"Qwen2ForCausalLM": "lm", "Qwen2ForSequenceClassification": "reward"},
    body=blocks.body(*blocks.attention(qkv_bias=True), *blocks.mlp()),
    heads=blocks.HEADS,
    stateful=blocks.STATEFUL,
    fixed_args=blocks.PLAIN_ARGS | {"add_qkv_bias": True},
    fixed_hf_keys={
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "layer_types": ["full_attention"],
        "partial_rotary_factor": 1.0,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    known_hf_keys=frozenset({"sliding_window", "max_window_layers"}),  # without effect while use_sliding_window is off
    hf_defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32},
    written_hf_keys=("use_sliding_window",),
)
