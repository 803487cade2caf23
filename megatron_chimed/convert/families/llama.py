"""The LLaMA family: RMSNorm, RoPE, SwiGLU, no biases, multi-head or grouped-query attention.

Ziya2, Yi, DeepSeek-LLM and the other descendants of LLaMA 1 to 3 are of this family.
"""

from megatron_chimed.convert.families import blocks
from megatron_chimed.convert.family import Family

LLAMA = Family(
    name="llama",
    title="LLaMA",
    architectures={"LlamaForCausalLM": "lm", "LLaMAForCausalLM": "lm", "LlamaForSequenceClassification": "reward"},
    body=blocks.body(*blocks.attention(), *blocks.mlp()),
    heads=blocks.HEADS,
    stateful=blocks.STATEFUL,
    fixed_args=blocks.PLAIN_ARGS,
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
    written_hf_keys=("attention_bias", "mlp_bias"),
)
