"""Build a Megatron model of a converted or trained checkpoint in this process, without the trainer.

One tensor-parallel group of all ranks, no pipeline. The caller has initialised torch.distributed.
"""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig

from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.lora import Opened
from megatron_chimed.convert.megatron_args import to_options
from megatron_chimed.convert.rope import Rope, yarn_mscale
from megatron_chimed.convert.routing import config_fields
from megatron_chimed.convert.sizes import pad_vocab
from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.models.options import LoraOptions, ModelOptions
from megatron_chimed.models.reward import HEAD, build_reward


def transformer_config(model: Architecture, dtype: torch.dtype, **changes: Any) -> TransformerConfig:
    """Make Megatron's configuration of the layers, for evaluation on any device without Transformer Engine.

    changes: further fields, or others.
    """
    sizes = model.sizes
    settings = dict(
        num_layers=sizes.layers,
        hidden_size=sizes.hidden,
        ffn_hidden_size=sizes.ffn,
        num_attention_heads=sizes.heads,
        num_query_groups=sizes.num_query_groups,
        kv_channels=sizes.head_dim,
        layernorm_epsilon=model.norm_epsilon,
        **_family_fields(model.family.fixed_args),
        **(config_fields(model.routing, sizes) if model.routing else {}),
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        transformer_impl="local",
        use_cpu_initialization=True,
        perform_initialization=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
    )
    config = TransformerConfig(**settings | changes)
    if model.rope.kind == "yarn":
        set_yarn(config, model.rope)
    return config


def _family_fields(fixed_args: dict[str, Any]) -> dict[str, Any]:
    """Megatron's configuration of what a family's arguments fix: they have the names of its fields, but for SwiGLU."""
    known = {field.name for field in fields(TransformerConfig)}
    swiglu = {"gated_linear_unit": True, "activation_func": F.silu} if fixed_args["swiglu"] else {}
    return {name: value for name, value in fixed_args.items() if name in known} | swiglu


def set_yarn(config: TransformerConfig, rope: Rope) -> None:
    """Tell Megatron's layers of YaRN as its trainer does; the configuration has no fields for it."""
    config.yarn_rotary_scaling_factor = rope.factor
    config.yarn_original_max_position_embeddings = rope.original_positions
    config.yarn_beta_fast, config.yarn_beta_slow = rope.beta_fast, rope.beta_slow
    config.yarn_mscale, config.yarn_mscale_all_dim = yarn_mscale(rope), 0.0
    config.yarn_correction_range_round_to_int = rope.truncate


def gpt_config(model: Architecture, dtype: torch.dtype, gather_logits: bool, **changes: Any) -> SimpleNamespace:
    """Make what `build_gpt` takes of Megatron's model configuration; changes: of the layers' configuration."""
    rope = model.rope
    return SimpleNamespace(
        transformer=transformer_config(model, dtype, **changes),
        seq_length=model.max_positions,
        fp16_lm_cross_entropy=False,
        parallel_output=not gather_logits,
        share_embeddings_and_output_weights=model.tied,
        position_embedding_type="yarn" if rope.kind == "yarn" else "rope",
        rotary_percent=1.0,
        rotary_base=rope.base,
        rope_scaling=rope.kind == "llama3",
        rope_scaling_factor=rope.factor,
        seq_len_interpolation_factor=rope.factor if rope.kind == "linear" else None,
        scatter_embedding_sequence_parallel=True,
        num_ids=model.sizes.vocab,
    )


def build_part(
    model: Architecture, config: SimpleNamespace, lora: LoraOptions | None = None, **placement: Any
) -> GPTModel:
    """Build this rank's part of the model, its weights not set yet, from `gpt_config`; placement: see `build_gpt`."""
    build = build_reward if model.head == "reward" else build_gpt
    return build(
        ModelOptions(**to_options(model), lora=lora),
        config,
        vocab_size=pad_vocab(model.sizes.vocab, parallel_state.get_tensor_model_parallel_world_size()),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        **placement,
    )


def build_model(
    model: Architecture, dtype: torch.dtype, gather_logits: bool = True, lora: LoraOptions | None = None
) -> GPTModel:
    """Build this rank's part of the model, its weights not set yet.

    Logits are [batch, sequence, padded vocabulary], or without gather_logits this rank's slice of them, as a loss wants
    it; a reward model gives rewards [batch, sequence]. Starts Megatron's parallel state with all ranks as one
    tensor-parallel group.
    """
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=torch.distributed.get_world_size())
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    config = gpt_config(model, dtype, gather_logits)
    return build_part(model, config, lora, pre_process=True, post_process=True).eval()


def load_opened(gpt: GPTModel, opened: Opened) -> None:
    """Fill a model from a checkpoint; one of adapters after its base, which may have another head."""
    if opened.base is None:
        load_weights(gpt, opened.source.folder)
        return
    gpt.part, gpt.init_missing = "base", HEAD not in opened.base.tensors
    load_weights(gpt, opened.base.folder)
    gpt.part, gpt.init_missing = "adapters", False
    load_weights(gpt, opened.source.folder)


def load_weights(gpt: GPTModel, folder: Path) -> None:
    """Fill a model from one checkpoint folder with Megatron's own loader, whatever layout it was saved in."""
    loaded = dist_checkpointing.load({"model": gpt.sharded_state_dict()}, str(folder))
    gpt.load_state_dict(loaded["model"])
