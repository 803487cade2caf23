"""The LLaMA family: RMSNorm, RoPE, SwiGLU, no biases, multi-head or grouped-query attention.

Ziya2 and the other descendants of LLaMA 1 to 3 are of this family. Another family is one more such table.
"""

from megatron_chimed.convert.family import Entry, Family
from megatron_chimed.convert.tensors import join_one, join_qkv, join_rows, split_one, split_qkv, split_rows

LAYER = "decoder.layers."
HF_LAYER = "model.layers.{}."


def _same(megatron: str, hf: str, *shape: str | int) -> Entry:
    """A weight that both sides keep alike."""
    return Entry(megatron, (hf,), (shape,), join_one, split_one)


LLAMA = Family(
    name="llama",
    architectures={"LlamaForCausalLM": "lm", "LLaMAForCausalLM": "lm", "LlamaForSequenceClassification": "reward"},
    trunk=(
        _same("embedding.word_embeddings.weight", "model.embed_tokens.weight", "vocab", "hidden"),
        _same(LAYER + "self_attention.linear_qkv.layer_norm_weight", HF_LAYER + "input_layernorm.weight", "hidden"),
        Entry(
            LAYER + "self_attention.linear_qkv.weight",
            tuple(HF_LAYER + f"self_attn.{part}_proj.weight" for part in "qkv"),
            (("queries", "hidden"), ("keys", "hidden"), ("keys", "hidden")),
            join_qkv,
            split_qkv,
        ),
        _same(LAYER + "self_attention.linear_proj.weight", HF_LAYER + "self_attn.o_proj.weight", "hidden", "queries"),
        _same(LAYER + "mlp.linear_fc1.layer_norm_weight", HF_LAYER + "post_attention_layernorm.weight", "hidden"),
        Entry(
            LAYER + "mlp.linear_fc1.weight",
            tuple(HF_LAYER + f"mlp.{part}_proj.weight" for part in ("gate", "up")),
            (("ffn", "hidden"), ("ffn", "hidden")),
            join_rows,
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
