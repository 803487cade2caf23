"""How a layer chooses among its experts: as config.json and Megatron's arguments have it.

Both take the softmax over all experts and the largest scores of a token. Their auxiliary losses balance the experts
(Fedus et al., 2021, arXiv 2101.03961, equations 4 to 6): Megatron's of each layer by itself, divided by the experts of
a token, and summed over the layers; transformers' of all layers together. So that both pull alike, and with one layer
are the same, Megatron's coefficient is transformers' * experts of a token / layers.
"""

from dataclasses import dataclass
from typing import Any

from megatron_chimed.convert.sizes import Sizes
from megatron_chimed.errors import short

DIGITS = 12
"""Digits of a coefficient: Megatron's is a multiple of transformers'."""

KEYS = ("num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef", "output_router_logits")
"""What `read_hf` reads."""


@dataclass(frozen=True)
class Routing:
    """The router of a layer with experts."""

    experts_per_token: int

    normalized: bool
    """The scores of a token's experts are divided by their sum."""

    coefficient: float
    """Of the auxiliary loss, in the measure of transformers."""

    balanced: bool
    """The auxiliary loss is added in training."""


def read_hf(config: dict[str, Any], sizes: Sizes | None, problems: list[str]) -> Routing | None:
    """Read the router of a config.json; what is wrong with it is added to `problems`, and then there is none."""
    count, normalized, coefficient, balanced = (config.get(key) for key in KEYS)
    wrong = []
    if type(count) is not int or count <= 0 or (sizes is not None and count > sizes.experts):
        wrong.append(f"{KEYS[0]} is {short(count)}; expected a whole number above 0, at most the number of experts")
    for key, value in ((KEYS[1], normalized), (KEYS[3], balanced)):
        if not isinstance(value, bool):
            wrong.append(f"{key} is {short(value)}; expected true or false")
    if isinstance(coefficient, bool) or not isinstance(coefficient, int | float) or coefficient < 0:
        wrong.append(f"{KEYS[2]} is {short(coefficient)}; expected a number, at least 0")
    if count == 1 and normalized is True:
        wrong.append(f"{KEYS[0]} is 1 with {KEYS[1]}: a score that is always 1, which Megatron refuses")
    problems += wrong
    return None if wrong else Routing(count, normalized, round(coefficient, DIGITS), balanced and coefficient > 0)


def to_hf(routing: Routing) -> dict[str, Any]:
    """Make config.json's keys of the router."""
    values = (routing.experts_per_token, routing.normalized, routing.coefficient, routing.balanced)
    return dict(zip(KEYS, values, strict=True))


def to_megatron(routing: Routing, sizes: Sizes) -> dict[str, Any]:
    """Make Megatron's arguments of the experts, by their option names."""
    settings = {
        "num-experts": sizes.experts,
        "moe-ffn-hidden-size": sizes.expert_ffn,
        "moe-router-topk": routing.experts_per_token,
        "moe-router-load-balancing-type": "aux_loss" if routing.balanced else "none",
        "moe-aux-loss-coeff": routing.coefficient * routing.experts_per_token / sizes.layers,
    }
    return settings if routing.normalized else settings | {"moe-router-pre-softmax": True}


def config_fields(routing: Routing, sizes: Sizes) -> dict[str, Any]:
    """Make the fields of Megatron's configuration of the layers, without the auxiliary loss."""
    return {
        "num_moe_experts": sizes.experts,
        "moe_ffn_hidden_size": sizes.expert_ffn,
        "moe_router_topk": routing.experts_per_token,
        "moe_router_pre_softmax": not routing.normalized,
        "moe_router_load_balancing_type": "none",
    }


def from_args(args: dict[str, Any], sizes: Sizes) -> Routing:
    """Read the router from Megatron's arguments of a model with experts."""
    count = args.get("moe_router_topk") or 2
    coefficient = (_only(args.get("moe_aux_loss_coeff")) or 0.0) * sizes.layers / count
    balancing = _only(args.get("moe_router_load_balancing_type")) or "aux_loss"
    normalized = not args.get("moe_router_pre_softmax", False)
    return Routing(count, normalized, round(coefficient, DIGITS), balancing == "aux_loss" and coefficient > 0)


def _only(value: Any) -> Any:
    """The element of a list of one, which Megatron's parser makes of these two arguments; else the value."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
