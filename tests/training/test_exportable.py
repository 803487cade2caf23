"""Every argument that the trainer accepts makes a model that can be exported, or is refused at the start."""

import argparse
import re
from dataclasses import replace

import pytest
from megatron.training.arguments import add_megatron_arguments
from support.job import MODEL

from megatron_chimed.config import Located
from megatron_chimed.convert.megatron_args import from_megatron_args, unexportable
from megatron_chimed.training.defaults import defaults

GROUPS = (
    *("transformer configuration", "network size", "mla", "moe", "experimental_attention_variant"),
    *("heterogeneous architecture", "experimental"),
)
"""The groups of Megatron's parser that define the model."""

EXPRESSED = {
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"),
    *("group_query_attention", "layernorm_epsilon", "max_position_embeddings", "rotary_base", "use_rope_scaling"),
    *("rope_scaling_factor", "rotary_seq_len_interpolation_factor", "untie_embeddings_and_output_weights"),
    *("add_qkv_bias", "qk_layernorm"),
}
"""What config.json says too."""

REFUSED_BEFORE = {
    "encoder_num_layers",
    "decoder_num_layers",
    "use_rotary_position_embeddings",
    "yaml_cfg",
}
"""Refused by Megatron's own validation or by check_layers."""

ONLY_WITH_OTHERS = r"""
    moe_|dsa_|linear_|mtp_|mup_|mamba_|hybrid_|yarn_|relative_attention_|window_attn|use_mamba|
    q_lora|kv_lora|qk_head_dim|qk_pos_emb|v_head_dim|rotary_scaling_factor|mscale|cache_mla|mla_down|
    expert_|num_moe_|heterogeneous_block|use_fused_weighted_squared_relu
"""
"""Without effect unless another argument is given, which is refused: experts, latent attention, hybrid models, muP."""

HOW_IT_IS_COMPUTED = r"""
    tensor_|pipeline_|sequence_parallel|context_|hierarchical_|max_seqlen_per|hybrid_context|perform_initialization|
    use_cpu_init|fp16|bf16|fp8|fp4|fp32_residual|deterministic|tp_|cross_entropy|overlap_|delay_|ep_overlap|use_ring|
    defer_|wgrad|microbatch_group|cpu_offload|account_for|attention_backend|flash_|hidden_dropout|attention_dropout|
    qk_clip|calculate_per_token|init_|embedding_init|apply_query_key|disable_bf16|fused_|first_last|num_layers_at_|
    use_kitchen|kitchen|high_priority|use_grouped|cuda_graph|enable_cuda_graph|external_cuda|clone_scatter|
    config_logger|use_te_activation|mlp_chunks|transformer_impl|offload|min_offloaded|delta_offload|activation_offload|
    recompute|distribute_saved|inference|batch_invariant|symmetric|fine_grained|quant|nccl|use_transformer_engine|
    make_vocab|onnx_safe|bert_binary|add_position_embedding|rope_type|enable_experimental|use_precision|main_|exp_avg|
    megatron_fsdp|fsdp_|flash_decode|no_weight|keep_|delay_wgrad|log_max|test_mode|barrier|apply_rope_fusion|
    masked_softmax|gradient_accumulation|bias_dropout|cp_comm|persist|memory_efficient|use_inference|decoder_|
    dgrad|grad|normalization_memory|single_grouped
"""
"""Parallelism, precision, kernels, memory, initial values, regularization: the function of the weights is the same."""


def compiled(pattern: str) -> re.Pattern:
    return re.compile(re.sub(r"\s", "", pattern))


@pytest.fixture(scope="module")
def actions() -> list[argparse.Action]:
    """Megatron's arguments of the model, one for each destination."""
    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    found = {a.dest: a for group in parser._action_groups if group.title in GROUPS for a in group._group_actions}
    assert len(found) > 200
    return list(found.values())


def llama(actions) -> argparse.Namespace:
    """The arguments of a model of the family, as the trainer has them."""
    values = {action.dest: action.default for action in actions}
    given = {key.replace("-", "_"): value for key, value in MODEL.items()}
    values |= given | {"padded_vocab_size": 256, "layernorm_zero_centered_gamma": False, "add_bias_linear": False}
    return argparse.Namespace(**values)


def changed(action: argparse.Action, value: object) -> object:
    """Another value than the one that a LLaMA has."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    choices = [choice for choice in action.choices or () if choice != value]
    return choices[0] if choices else "something else"


def accepted_and_unknown(actions, names=None) -> list[str]:
    """Arguments that nobody refuses, and of which nobody knows that the export is right all the same."""
    found = []
    for action in actions:
        known = action.dest in EXPRESSED | REFUSED_BEFORE | {"position_embedding_type", "normalization", "swiglu"}
        known = (
            known or compiled(ONLY_WITH_OTHERS).match(action.dest) or compiled(HOW_IT_IS_COMPUTED).match(action.dest)
        )
        args = llama(actions)
        setattr(args, action.dest, changed(action, getattr(args, action.dest)))
        if not known and not unexportable(args) and (names is None or action.dest in names):
            found.append(action.dest)
    return found


def test_every_argument_of_a_model_is_expressed_refused_or_known_to_leave_it_as_it_is(actions):
    assert accepted_and_unknown(actions) == []


def test_control_an_argument_that_is_not_refused_any_more_is_found_out(actions, monkeypatch):
    from megatron_chimed.convert import families

    fixed = {name: value for name, value in families.LLAMA.fixed_args.items() if name != "qk_l2_norm"}
    monkeypatch.setattr(families, "FAMILIES", (replace(families.LLAMA, fixed_args=fixed), *families.FAMILIES[1:]))
    assert accepted_and_unknown(actions) == ["qk_l2_norm"]


def test_control_a_llama_itself_is_exported(actions):
    assert unexportable(llama(actions)) == []
    assert from_megatron_args(llama(actions), "lm", "args").sizes.num_query_groups == 2


@pytest.mark.parametrize("name", ["normalization", "position_embedding_type", "swiglu"])
def test_what_a_llama_must_have_is_refused_when_it_has_it_not(actions, name):
    args = llama(actions)
    setattr(args, name, False)
    assert unexportable(args)


def test_yarn_goes_without_the_fused_kernel_that_leaves_out_its_attention_factor():
    layers = {"transformer-impl": Located("transformer_engine", "model.yaml")}
    assert "no-rope-fusion" not in defaults(layers)
    yarn = {"position-embedding-type": Located("yarn", "model.yaml")}
    assert defaults(layers | yarn)["no-rope-fusion"] is True
