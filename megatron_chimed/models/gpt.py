"""The GPTModel of LLaMA's shape and its relatives: RoPE, RMSNorm, SwiGLU; MHA or GQA, tied or untied embeddings.

The one place that constructs a language model. `config` is Megatron's GPTModelConfig; it is taken by its attributes,
because this package does not import megatron.training.
"""

import importlib.util
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron_chimed.models import lora, norm
from megatron_chimed.models.attention import CoreAttention, choose_kernel
from megatron_chimed.models.chunked_loss import chunk_loss
from megatron_chimed.models.moe import find_routers, moe_problems, take_router
from megatron_chimed.models.options import ModelOptions
from megatron_chimed.models.rotary import set_llama3_constants, take_packed_positions


def check_layers(config: TransformerConfig, options: ModelOptions | None = None) -> None:
    """Raise ValueError listing what of a Megatron configuration the chosen layers cannot do, with the model's options.

    That a family has the model at all `convert.megatron_args.unexportable` tells.
    """
    wrong = []
    if getattr(config, "yarn_rotary_scaling_factor", None) is not None and config.apply_rope_fusion:
        wrong.append("--position-embedding-type yarn needs --no-rope-fusion, which leaves out its attention factor")
    if config.transformer_impl == "local":
        if config.window_size is not None:
            wrong.append("--window-size needs --transformer-impl transformer_engine")
        if config.apply_query_key_layer_scaling:
            wrong.append("--apply-query-key-layer-scaling needs --transformer-impl transformer_engine")
        if config.softmax_type != "vanilla":
            wrong.append("--softmax-type must be vanilla")
        if config.context_parallel_size > 1:
            wrong.append("--context-parallel-size needs --transformer-impl transformer_engine")
    wrong += moe_problems(config)
    options = options or ModelOptions()
    wrong += _chunk_problems(config, options.cross_entropy_chunk_tokens)
    if options.lora is not None:
        wrong += options.lora.problems() or lora.problems(options.lora, config)
    if wrong:
        raise ValueError("the layers cannot do this: " + "; ".join(wrong))


def _chunk_problems(config: TransformerConfig, tokens: int) -> list[str]:
    """Reasons against a loss in chunks of so many tokens; 0 is none."""
    if tokens < 0:
        return [f"cross_entropy_chunk_tokens is {tokens}; expected 0 (all at once) or more"]
    others = ("defer_embedding_wgrad_compute", "fp8_output_proj")
    return [
        f"cross_entropy_chunk_tokens has an output layer without --{name.replace('_', '-')}"
        for name in others
        if tokens and getattr(config, name, False)
    ]


def layer_spec(config: TransformerConfig, attention: str) -> ModuleSpec | TransformerBlockSubmodules:
    """Megatron's layer specification: Transformer Engine's when the configuration asks for it, else our own."""
    experts = {"num_experts": config.num_moe_experts, "moe_grouped_gemm": config.moe_grouped_gemm}
    if config.transformer_impl == "transformer_engine":
        spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm, **experts)
        if config.num_moe_experts is not None:
            take_router(spec.submodules)
        return spec
    kernel = choose_kernel(attention)
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm", **experts)
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = norm.RMSNorm
    core_attention = CoreAttention if kernel == "sdpa" else type("CoreAttention", (CoreAttention,), {"kernel": kernel})
    layer.self_attention.submodules.core_attention = core_attention
    if config.num_moe_experts is not None:
        take_router(layer)
    if config.qk_layernorm:
        layer.self_attention.submodules.q_layernorm = layer.self_attention.submodules.k_layernorm = norm.RMSNorm
    # A bare layer specification would leave the final norm to a default that refuses sequence parallelism.
    return TransformerBlockSubmodules(layer_specs=[spec] * _layers_here(config), layer_norm=norm.RMSNorm)


def _layers_here(config: TransformerConfig) -> int:
    """Layers of this pipeline stage (all of them without pipeline parallelism)."""
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    return get_num_layers_to_build(config)


def build_gpt(
    options: ModelOptions,
    config: Any,
    *,
    vocab_size: int,
    pre_process: bool,
    post_process: bool,
    pg_collection: ProcessGroupCollection,
    vp_stage: int | None = None,
    model_class: type[GPTModel] = GPTModel,
) -> GPTModel:
    """Build this rank's part of the model.

    config: Megatron's GPTModelConfig; vocab_size: padded, divisible by the tensor-parallel size; pre_process and
    post_process: whether this rank holds the embedding and the output layer; model_class: one with another output. The
    configuration has passed `check_layers`.
    """
    made_class = model_class if options.lora is None else lora.with_adapters(model_class)
    model = made_class(
        config=config.transformer,
        transformer_layer_spec=layer_spec(config.transformer, options.attention),
        vocab_size=vocab_size,
        max_sequence_length=config.seq_length,
        pre_process=pre_process,
        post_process=post_process,
        fp16_lm_cross_entropy=config.fp16_lm_cross_entropy,
        parallel_output=config.parallel_output,
        share_embeddings_and_output_weights=config.share_embeddings_and_output_weights,
        position_embedding_type=config.position_embedding_type,
        rotary_percent=config.rotary_percent,
        rotary_base=config.rotary_base,
        rope_scaling=config.rope_scaling,
        rope_scaling_factor=config.rope_scaling_factor,
        seq_len_interpolation_factor=config.seq_len_interpolation_factor,
        scatter_embedding_sequence_parallel=config.scatter_embedding_sequence_parallel,
        pg_collection=pg_collection,
        vp_stage=vp_stage,
    )
    take_packed_positions(model)
    if config.rope_scaling:
        set_llama3_constants(model.rotary_pos_emb, config.rotary_base, config.rope_scaling_factor, options)
    model.routers = find_routers(model)
    if post_process and config.num_ids is not None and model_class is GPTModel:
        mask_padded_vocab(model, config.num_ids, vocab_size, pg_collection.tp.rank())
    if post_process and options.cross_entropy_chunk_tokens and model_class is GPTModel:
        chunk_loss(model, options.cross_entropy_chunk_tokens)
    if options.lora is not None:
        lora.attach(model, options.lora, config.transformer, pg_collection)
    return model


def mask_padded_vocab(model: GPTModel, num_ids: int, padded: int, rank: int) -> None:
    """Let the logits of ids from `num_ids` to `padded` be as good as minus infinity, in the loss and in sampling.

    Megatron pads the vocabulary to suit the tensor-parallel size, and counts the padding in its softmax: a small or
    freshly converted model then has another loss at TP 1 than at TP 2, and another one than elsewhere. rank:
    tensor-parallel.
    """

    def mask(module, inputs, outputs):
        logits, _ = outputs
        width = logits.size(-1)  # of this rank, or of all where they are gathered
        first = max(0, num_ids - (rank * width if width < padded else 0))
        if first < width:
            logits[..., first:] = torch.finfo(logits.dtype).min

    if num_ids < padded:
        model.output_layer.register_forward_hook(mask)


def backends(transformer_impl: str, fused_weight_gradients: bool, attention: str) -> dict[str, str]:
    """Which package serves each part of the model, for the start-up line."""
    if transformer_impl == "transformer_engine":
        return dict.fromkeys(("attention", "norms", "weight gradients"), "transformer-engine")
    return {
        "attention": f"torch SDPA (packed: {choose_kernel(attention)})",
        "norms": norm.BACKEND,
        "weight gradients": "apex" if fused_weight_gradients else "torch",
    }


def has(package: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None
