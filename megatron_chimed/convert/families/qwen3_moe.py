"""Qwen3 with experts: Qwen3's attention, and in each layer a router and experts in the place of one MLP.

Qwen3-30B-A3B, 235B-A22B and Baichuan-M3 are of this family. No expert is shared, and no token is dropped.
Source: transformers, `models/qwen3_moe/modeling_qwen3_moe.py`.
"""

from megatron_chimed.convert.families import blocks
from megatron_chimed.convert.family import SOME, Family

QWEN3_MOE = Family(
    name="qwen3_moe",
    title="Qwen3-MoE",
    architectures={"Qwen3MoeForCausalLM": "lm", "Qwen3MoeForSequenceClassification": "reward"},
    body=blocks.body(*blocks.attention(qk_norm=True), *blocks.experts()),
    heads=blocks.HEADS,
    stateful=blocks.STATEFUL_ATTENTION,
    fixed_args=blocks.PLAIN_ARGS | {"qk_layernorm": True, "num_experts": SOME},
    fixed_hf_keys={
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "layer_types": ["full_attention"],
        "mlp_only_layers": [],
        "partial_rotary_factor": 1.0,
        "use_sliding_window": False,
    },
    known_hf_keys=frozenset({"sliding_window", "max_window_layers"}),  # without effect while use_sliding_window is off
    hf_defaults={
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
    size_keys={"experts": "num_experts", "expert_ffn": "moe_intermediate_size"},
    hf_aliases={"num_local_experts": "num_experts"},  # as transformers 5 writes it
    written_hf_keys=("attention_bias", "decoder_sparse_step", "mlp_only_layers", "use_sliding_window"),
)
