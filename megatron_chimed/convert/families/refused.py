"""Models that are asked for and not served, each with the reason: what it has that no family here has."""

DELTA = "three of four layers are gated delta nets, attention has an output gate, and a quarter of each head is rotated"
VISION = "it has a vision tower; only its text is a language model"
INTERLEAVED = "neighbouring numbers of a head are rotated in pairs"
EXPERTS = "its experts are not those of a served family"
LATENT = "its attention keeps latent keys and values"

ARCHITECTURES = {
    "Qwen3_5ForConditionalGeneration": f"{DELTA}; {VISION}",
    "Qwen3_5ForCausalLM": DELTA,
    "Qwen3_5MoeForConditionalGeneration": f"{DELTA}; {VISION}",
    "Qwen3NextForCausalLM": DELTA,
    "Qwen2MoeForCausalLM": f"{EXPERTS}: one is shared and has a gate of its own",
    "Qwen2VLForConditionalGeneration": VISION,
    "Qwen2_5_VLForConditionalGeneration": VISION,
    "Qwen3VLForConditionalGeneration": VISION,
    "Qwen2ForRewardModel": "its head has two layers; that of Qwen2ForSequenceClassification, which is served, has one",
    "QWenLMHeadModel": "the first Qwen: one fused tensor of query, key and value, and code of its own",
    "ChatGLMModel": f"half of each head is rotated, and {INTERLEAVED}",
    "GlmForCausalLM": f"half of each head is rotated, and {INTERLEAVED}",
    "Glm4ForCausalLM": f"half of each head is rotated, {INTERLEAVED}, and norms stand behind attention and MLP too",
    "Glm4MoeForCausalLM": f"half of each head is rotated; {EXPERTS}",
    "InternLMForCausalLM": "query, key, value and output of attention have biases, and the MLP has none",
    "InternLM2ForCausalLM": "one fused tensor of query, key and value (wqkv), and positions whose scaling is dynamic",
    "InternLM3ForCausalLM": "positions whose scaling is dynamic: frequencies follow the length of each text",
    "BaichuanForCausalLM": "one fused tensor of query, key and value (W_pack); Baichuan2 normalises the rows of its "
    "output layer, and 13B has ALiBi in the place of rotary positions",
    "BaiChuanForCausalLM": "one fused tensor of query, key and value (W_pack)",
    "BaichuanM1ForCausalLM": "keys and values pass a convolution, and layers have windows",
    "MiniCPMForCausalLM": "embeddings, residuals and logits are scaled (muP)",
    "MiniCPM3ForCausalLM": f"{LATENT}, and embeddings, residuals and logits are scaled (muP)",
    "HunYuanDenseV1ForCausalLM": "queries and keys are normalised behind the rotary positions, not before them",
    "HunYuanMoEV1ForCausalLM": f"queries and keys are normalised behind the rotary positions; {EXPERTS}",
    "SeedOssForCausalLM": "biases of query, key, value and output of attention can be chosen one by one",
    "Ernie4_5ForCausalLM": INTERLEAVED,
    "Ernie4_5_MoeForCausalLM": f"{INTERLEAVED}; {EXPERTS}",
    "PanguEmbeddedForCausalLM": "query, key, value and output of attention have biases, and the MLP has none",
    "BailingMoeV2ForCausalLM": f"Ling 2.0: half of each head is rotated; {EXPERTS}",
    "MixtralForCausalLM": EXPERTS,
    "DeepseekV2ForCausalLM": f"{LATENT}; {EXPERTS}",
    "DeepseekV3ForCausalLM": f"{LATENT}; {EXPERTS}",
    "Mistral3ForConditionalGeneration": VISION,
    "MinistralForCausalLM": "layers with a sliding window between those without",
    "Llama4ForConditionalGeneration": f"{VISION}; layers without positions; {EXPERTS}",
    "GptOssForCausalLM": f"attention has sinks, and layers have windows; {EXPERTS}",
    "GemmaForCausalLM": "weights of norms count from 0, and embeddings are scaled",
    "Gemma2ForCausalLM": "weights of norms count from 0, embeddings are scaled, and logits are capped",
    "Gemma3ForCausalLM": "weights of norms count from 0, embeddings are scaled, and layers have windows",
    "Phi3ForCausalLM": "one fused tensor of query, key and value, and one of gate and up",
    "GraniteForCausalLM": "embeddings, residuals, attention and logits are scaled",
    "CohereForCausalLM": f"attention and MLP stand side by side, and {INTERLEAVED}",
    "Olmo2ForCausalLM": "norms stand behind attention and MLP, and queries and keys are normalised over all heads",
    "BloomForCausalLM": "ALiBi in the place of rotary positions, LayerNorm, biases",
    "GPT2LMHeadModel": "learned positions, LayerNorm, biases",
}
"""{class of config.json: reason}."""

KEYS = {
    "attention_bias": "Megatron has a bias of attention's output only together with biases of the MLP",
    "mlp_bias": "biases of the MLP are of no served family",
    "hidden_act": "the MLP is SwiGLU",
    "decoder_sparse_step": "every layer has experts",
    "mlp_only_layers": "every layer has experts",
    "layer_types": "layers with a window, or of another kind, are not served",
    "partial_rotary_factor": "all of a head is rotated",
    "quantization_config": "training needs the weights before they were quantised",
    "rope_interleaved": "the halves of a head are rotated as pairs",
    "sliding_window": "every token sees all that is before it; if no training or text is longer, set it to null",
    "use_sliding_window": "every token sees all that is before it; if no training or text is longer, set it to false",
}
"""{key of config.json: why it has one value alone}."""

SCALINGS = {
    "dynamic": "its frequencies follow the length of each text",
    "longrope": "its frequencies follow the length of each text",
}
"""{rope_type: reason}."""


def bracketed(reasons: dict[str, str], name: object) -> str:
    """The reason for a name, in brackets behind a space, for a message; "" where there is none."""
    return f" ({reasons[name]})" if isinstance(name, str) and name in reasons else ""
