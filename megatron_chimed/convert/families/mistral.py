"""Mistral without a sliding window, as from 7B v0.2 on: LLaMA's decoder under another name.

Megatron's arguments are those of a LLaMA, so the name travels as the option `family` of the model.
"""

from megatron_chimed.convert.families import blocks
from megatron_chimed.convert.family import Family

MISTRAL = Family(
    name="mistral",
    title="Mistral",
    architectures={"MistralForCausalLM": "lm", "MistralForSequenceClassification": "reward"},
    body=blocks.body(*blocks.attention(), *blocks.mlp()),
    heads=blocks.HEADS,
    stateful=blocks.STATEFUL,
    fixed_args=blocks.PLAIN_ARGS,
    fixed_hf_keys={
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "partial_rotary_factor": 1.0,
        "sliding_window": None,
    },
    hf_defaults={"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8, "sliding_window": 4096},
    written_hf_keys=("sliding_window",),
)
