"""Mixture of experts: Megatron's dropless layer, with a router whose auxiliary loss weighs as the main loss does.

The trainer sums losses over micro batches and divides all gradients by what was counted: target tokens, or pairs of
answers. Upstream multiplies the auxiliary loss of a micro batch by its tokens, so that with masked tokens it grows by
tokens / target tokens. Here it is multiplied by what the main loss counts, and tokens of padding are not balanced.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.utils import unwrap_model


class MicroBatch(NamedTuple):
    """What the routers have to know of a micro batch."""

    counted: torch.Tensor
    """What its main loss counts, []."""

    padding: torch.Tensor | None = None
    """[b, s] bool, true for tokens of padding; None where there are none."""


class Router(TopKRouter):
    """Scores [s, b, experts] of hidden states [s, b, H]: softmax over the experts, of which each token takes the best.

    `micro_batch` is set before each forward pass in training (`tell_routers`); without it the router is Megatron's.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.micro_batch: MicroBatch | None = None
        self._recomputed: deque[MicroBatch | None] = deque()

    def routing(self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None):
        """logits [s, b, experts] of this rank -> probabilities and bool map, both [s * b, experts]."""
        if not self.training:
            return super().routing(logits)
        if not torch.is_grad_enabled():
            # A layer that is computed again in the backward pass: other micro batches may begin before that.
            self._recomputed.append(self.micro_batch)
            return super().routing(logits)
        if self._recomputed:
            self.micro_batch = self._recomputed.popleft()
        return super().routing(logits, self._padding())

    def _padding(self) -> torch.Tensor | None:
        """[s, b] of this rank's part of the sequence. A micro batch of padding alone is balanced, and weighs nothing:
        upstream would divide by its zero tokens."""
        if self.micro_batch is None or self.micro_batch.padding is None:
            return None
        padding = self.micro_batch.padding.T
        padding = padding & ~padding.all()
        if self.config.sequence_parallel:
            padding = padding.chunk(self.tp_group.size())[self.tp_group.rank()]
        return padding

    def attach_and_log_load_balancing_loss(self, activation, aux_loss_coeff, aux_loss, name, reduce_group, **kwargs):
        """As in Megatron, with the weight of the micro batch's main loss; all ranks of the group add up to it."""
        if self.micro_batch is not None:
            kwargs["valid_token_count"] = self.micro_batch.counted / self.tp_cp_group.size()
        return super().attach_and_log_load_balancing_loss(
            activation, aux_loss_coeff, aux_loss, name, reduce_group, **kwargs
        )


def tell_routers(model: torch.nn.Module, micro_batch: Callable[[], MicroBatch]) -> None:
    """Tell a model's routers of the micro batch that it is about to see; without experts nothing is asked for."""
    if routers := getattr(unwrap_model(model), "routers", []):
        told = micro_batch()
        for router in routers:
            router.micro_batch = told


def find_routers(model: torch.nn.Module) -> list[Router]:
    """The routers of this rank's layers."""
    return [module for module in model.modules() if isinstance(module, Router)]


def take_router(layer: TransformerLayerSubmodules) -> None:
    """Let a layer specification with experts have our router, and name its norm alike with either layer library."""
    layer.mlp.keywords["submodules"].router = Router
    # With experts Transformer Engine has no norm in its first linear layer; the name is then the norm's own.
    layer.sharded_state_dict_keys_map = {
        key: name for key, name in layer.sharded_state_dict_keys_map.items() if key != "pre_mlp_layernorm."
    }


def moe_problems(config: TransformerConfig) -> list[str]:
    """List what our layers with experts cannot do of a Megatron configuration, each with what to do."""
    if config.num_moe_experts is None:
        return []
    wrong = []
    if config.tensor_model_parallel_size > 1 and not config.sequence_parallel:
        wrong.append("--num-experts with --tensor-model-parallel-size above 1 needs --sequence-parallel")
    if config.moe_expert_capacity_factor is not None or config.moe_token_dropping:
        wrong.append("--moe-expert-capacity-factor drops tokens; leave it out")
    if config.moe_router_load_balancing_type not in ("aux_loss", "none"):
        kind = config.moe_router_load_balancing_type
        wrong.append(f"--moe-router-load-balancing-type {kind} is not supported; take aux_loss or none")
    if not isinstance(config.moe_aux_loss_coeff, int | float):
        wrong.append("--moe-aux-loss-coeff takes one number")
    for name in ("moe_z_loss_coeff", "moe_input_jitter_eps", "moe_router_force_biased"):
        if getattr(config, name) is not None:
            wrong.append(f"--{name.replace('_', '-')} is not supported; leave it out")
    if config.moe_router_force_load_balancing:
        wrong.append("--moe-router-force-load-balancing sends tokens anywhere; leave it out")
    if config.transformer_impl == "local":
        for name in ("moe_grouped_gemm", "moe_permute_fusion", "moe_router_fusion"):
            if getattr(config, name):
                wrong.append(f"--{name.replace('_', '-')} needs --transformer-impl transformer_engine")
    return wrong
