"""One more token of every row, by the weights of Megatron's layers without what training needs around them.

Megatron's own forward pass of one token is mostly Python: autograd functions, wrappers, angles for each layer. The same
operations in the same order give the same numbers in half of the time. Layers of another make, and modules that carry
hooks (adapters, a trainer's gathering of weights), are called as they are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_layer import TransformerLayer

WithBias = tuple[torch.Tensor, torch.Tensor | None]
"""What Megatron's linears give: an output, and a bias that is still to be added."""

Decoder = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Embedded tokens [1, b, hidden] and their angles [b, d] -> normalised states [1, b, hidden]."""


def decoder_of(model: GPTModel) -> Decoder:
    """The decoder of a model to whose layers a cache is attached."""
    if not _is_plain(model):
        return lambda hidden, table: model.decoder(hidden, None, rotary_pos_emb=table[None, :, None])
    layers = [_layer(layer) for layer in model.decoder.layers]
    scale = model.decoder.layers[0].self_attention._yarn_concentration_factor
    norm = model.decoder.final_layernorm

    def decode(hidden: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        rotation = tuple((part(table) * scale).to(hidden.dtype)[None, :, None] for part in (torch.cos, torch.sin))
        for layer in layers:
            hidden = layer(hidden, rotation)
        return norm(hidden)

    return decode


def _is_plain(model: GPTModel) -> bool:
    """Whether all layers are of the kind that `_layer` computes."""
    config, block = model.config, model.decoder
    unusual = (
        config.attention_output_gate, config.fp32_residual_connection, config.no_rope_freq, config.rotary_interleaved,
        config.num_query_groups < config.tensor_model_parallel_size, config.test_mode,
    )  # fmt: skip
    if any(unusual) or not _is(block, TransformerBlock) or block.final_layernorm is None:
        return False
    for layer in block.layers:
        if not (_is(layer, TransformerLayer) and _is(layer.self_attention, SelfAttention)):
            return False
        if not (_is(layer.cross_attention, IdentityOp) and _is(layer.pre_cross_attn_layernorm, IdentityOp)):
            return False
    return True


def _is(module: torch.nn.Module, kind: type) -> bool:
    """Whether a module is of this very class, and nothing listens to its calls."""
    return type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks


def _layer(layer: TransformerLayer) -> Callable[[torch.Tensor, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """A layer: [1, b, hidden] and (cosine, sine), [1, b, 1, d] each -> [1, b, hidden]."""
    attention, mlp = layer.self_attention, _mlp(layer.mlp)
    qkv, out = _linear(attention.linear_qkv), _linear(attention.linear_proj)
    groups, size = attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head
    heads = attention.num_attention_heads_per_partition // groups
    core, q_norm, k_norm = attention.core_attention, attention.q_layernorm, attention.k_layernorm

    def forward(hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        rows = hidden.shape[1]
        mixed, _ = qkv(layer.input_layernorm(hidden))
        mixed = mixed.view(1, rows, groups, (heads + 2) * size)
        query, key, value = mixed.split([heads * size, size, size], dim=3)
        query = query.reshape(1, rows, groups * heads, size)
        query = query if q_norm is None else q_norm(query)
        key = key if k_norm is None else k_norm(key)
        context = core(_rotated(query, *rotation), _rotated(key, *rotation), value, None)
        hidden = _added(hidden, out(context))
        return _added(hidden, mlp(layer.pre_mlp_layernorm(hidden)))

    return forward


def _rotated(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """States [1, b, heads, size] turned by their angles; where these are fewer, the rest of a head stays."""
    size = cosine.shape[-1]
    turned, rest = (states, None) if size == states.shape[-1] else states.split([size, states.shape[-1] - size], -1)
    one, other = turned.chunk(2, dim=-1)
    turned = turned * cosine + torch.cat((-other, one), dim=-1) * sine
    return turned if rest is None else torch.cat((turned, rest), dim=-1)


def _added(residual: torch.Tensor, output: WithBias) -> torch.Tensor:
    states, bias = output
    return residual + (states if bias is None else states + bias)


def _mlp(mlp: torch.nn.Module) -> Callable[[torch.Tensor], WithBias]:
    """A dense gated MLP; any other as it is."""
    config = mlp.config
    if not _is(mlp, MLP) or not config.gated_linear_unit or config.bias_activation_fusion:
        return mlp
    if config.use_te_activation_func or config.activation_func_clamp_value is not None or config.glu_linear_offset:
        return mlp
    up, down, activation = _linear(mlp.linear_fc1), _linear(mlp.linear_fc2), config.activation_func

    def forward(hidden: torch.Tensor) -> WithBias:
        states, bias = up(hidden)
        gate, linear = (states if bias is None else states + bias).chunk(2, dim=-1)
        return down(activation(gate) * linear)

    return forward


def _linear(linear: torch.nn.Module) -> Callable[[torch.Tensor], WithBias]:
    """A linear of Megatron's; one that is of another class or listened to as it is."""
    column = _is(linear, ColumnParallelLinear) and not linear.gather_output
    row = _is(linear, RowParallelLinear) and linear.input_is_parallel
    if not (column or row) or linear.explicit_expert_comm or linear.sequence_parallel or linear.weight is None:
        return linear
    weight, bias, group = linear.weight, linear.bias, linear.tp_group
    reduces, late = row and group.size() > 1, linear.skip_bias_add

    def forward(inputs: torch.Tensor) -> WithBias:
        output = F.linear(inputs, weight)
        if reduces:
            torch.distributed.all_reduce(output, group=group)
        return (output, bias) if late or bias is None else (output + bias, None)

    return forward
