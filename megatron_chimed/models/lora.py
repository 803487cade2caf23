"""LoRA on Megatron's column- and row-parallel linears, under the names of PEFT's targets.

A target's output is W x + scaling * B A dropout(x), with A [rank, in] random and B [out, rank] zero: at the start the
model is its base to the bit. Megatron's fused layers have an adapter for each of their parts, so that PEFT's tensors
exist: query, key and value, gate and up. Only the adapters, and a reward model's head, are trained. Source: arXiv
2106.09685; rslora: arXiv 2312.03732; the start is that of peft 0.21.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from megatron.core import tensor_parallel as tp
from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron_chimed.models.options import LORA_TARGETS, LoraOptions

NAME = "adapters"
"""Of the adapters among the parts of a model, and in the names of its checkpoint."""

TRAINED = (f"{NAME}.", "reward_head.")
"""How the names of the weights that LoRA trains begin."""


class Adapter(torch.nn.Module):
    """x [s, b, in] -> scaling * B A dropout(x) [s, b, out], of this rank's part of a linear.

    `between` makes of A x what B takes: the exchange between the tensor-parallel ranks, of `rank` numbers a token.
    """

    def __init__(self, part: "Part", options: LoraOptions, config: TransformerConfig, layer: int, groups: Any):
        super().__init__()
        self.config, self.groups, self.column = config, groups, part.column
        ranks = groups.tp.size()
        self.scaling, self.dropout = options.scaling, options.dropout
        rows, columns = part.shape
        draw = torch.Generator().manual_seed(options.seed + layer * len(LORA_TARGETS) + LORA_TARGETS.index(part.target))
        # Drawn as a whole, whatever the ranks, and then cut: no number depends on how the model is spread.
        start = torch.empty(options.rank, columns).uniform_(-1, 1, generator=draw) / math.sqrt(columns)
        if part.column:
            rows //= ranks
        else:
            start = start.chunk(ranks, dim=1)[groups.tp.rank()].clone()
        self.A = torch.nn.Parameter(start.to(config.params_dtype))
        self.B = torch.nn.Parameter(torch.zeros(rows, options.rank, dtype=config.params_dtype))
        split, whole, axis = (self.B, self.A, 0) if part.column else (self.A, self.B, 1)
        tp.set_tensor_model_parallel_attributes(split, is_parallel=True, dim=axis, stride=1)
        # Each rank sees its part of the sequence: Megatron then adds up the ranks' gradients of this weight.
        whole.sequence_parallel = config.sequence_parallel

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs [s, b, in]: what the linear gets. Returns what is to be added to its output."""
        hidden = torch.nn.functional.linear(self._dropped(inputs), self.A)
        return torch.nn.functional.linear(self._between(hidden), self.B) * self.scaling

    def _dropped(self, inputs: torch.Tensor) -> torch.Tensor:
        """With dropout in training. Ranks that hold the same numbers drop the same ones, others other ones."""
        if not self.dropout or not self.training:
            return inputs
        if self.column and not self.config.sequence_parallel:
            return torch.nn.functional.dropout(inputs, self.dropout)
        with get_cuda_rng_tracker().fork():
            return torch.nn.functional.dropout(inputs, self.dropout)

    def _between(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [s, b, rank]: of a part of the sequence (column, sequence parallel) or of the sum (row)."""
        if self.column and self.config.sequence_parallel:
            return tp.gather_from_sequence_parallel_region(hidden, group=self.groups.tp)
        if self.column:
            return tp.copy_to_tensor_model_parallel_region(hidden, group=self.groups.tp)
        if self.config.sequence_parallel:
            return tp.reduce_scatter_to_sequence_parallel_region(hidden, group=self.groups.tp)
        return tp.reduce_from_tensor_model_parallel_region(hidden, group=self.groups.tp)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """As Megatron saves a linear: one of the two is spread over the tensor-parallel ranks."""
        axes = {"B": 0} if self.column else {"A": 1}
        weights = self.state_dict(prefix="", keep_vars=True)
        groups = {"tp_group": self.groups.tp, "dp_cp_group": self.groups.dp_cp}
        return make_sharded_tensors_for_checkpoint(weights, prefix, axes, sharded_offsets, **groups)


class Part(NamedTuple):
    """A target in a linear layer of Megatron's."""

    target: str
    shape: tuple[int, int]
    """[out, in] of the whole weight, over all ranks."""

    column: bool
    """Whether the ranks share out the rows; else the columns."""


def parts(config: TransformerConfig) -> dict[str, list[Part]]:
    """The targets in each linear of a layer, in the order in which its output has them."""
    hidden, ffn, channels = config.hidden_size, config.ffn_hidden_size, config.kv_channels
    query, key = config.num_attention_heads * channels, config.num_query_groups * channels
    found = {
        "self_attention.linear_qkv": [
            Part(name, (rows, hidden), True) for name, rows in (("q_proj", query), ("k_proj", key), ("v_proj", key))
        ],
        "self_attention.linear_proj": [Part("o_proj", (hidden, query), False)],
    }
    if config.num_moe_experts is None:
        found["mlp.linear_fc1"] = [Part(name, (ffn, hidden), True) for name in ("gate_proj", "up_proj")]
        found["mlp.linear_fc2"] = [Part("down_proj", (hidden, ffn), False)]
    return found


class Adapters(torch.nn.ModuleDict):
    """{layer: {target: Adapter}} of this pipeline stage; in a checkpoint each target's layers are one tensor."""

    def __init__(self, layers: dict[str, torch.nn.ModuleDict], num_layers: int):
        super().__init__(layers)
        self.num_layers = num_layers

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """{local name: tensor [layers, ...] of which this rank has a part}."""
        found: dict[str, Any] = {}
        for layer, adapters in self.items():
            offsets = (*sharded_offsets, (0, int(layer), self.num_layers))
            here: dict[str, Any] = {}
            for target, adapter in adapters.items():
                here |= adapter.sharded_state_dict(f"{prefix}{layer}.{target}.", offsets, metadata)
            replace_prefix_for_sharding(here, f"{prefix}{layer}.", prefix)
            found |= here
        return found


def problems(options: LoraOptions, config: TransformerConfig) -> list[str]:
    """List what LoRA cannot do of a Megatron configuration, each with what to do."""
    wrong = []
    if config.transformer_impl != "local":
        wrong.append("lora needs --transformer-impl local: Transformer Engine's linears hold the norm before them")
    if config.num_query_groups % config.tensor_model_parallel_size:
        wrong.append(f"lora needs a TP that divides --num-query-groups {config.num_query_groups}")
    here = {part.target for linear in parts(config).values() for part in linear}
    if missing := [name for name in options.targets if name not in here]:
        wrong.append(f"lora cannot have {', '.join(missing)} as targets in a model with experts; leave them out")
    return wrong


def attach(
    model: torch.nn.Module, options: LoraOptions, config: TransformerConfig, groups: ProcessGroupCollection
) -> None:
    """Give this rank's part of a model its adapters, as `model.adapters`, and let nothing else be trained but its head.

    config: that of the layers, which has no `problems`.
    """
    layers = {}
    for layer in model.decoder.layers:
        number, adapters = layer.layer_number - 1, torch.nn.ModuleDict()
        for place, targets in parts(config).items():
            made = {
                part.target: Adapter(part, options, config, number, groups)
                for part in targets
                if part.target in options.targets
            }
            adapters.update(made)
            if made:
                fuse = _fuse_qkv(config, groups.tp.size()) if len(targets) == 3 else _fuse_rows
                _extend(layer.get_submodule(place), [made.get(part.target) for part in targets], fuse)
        layers[str(number)] = adapters
    model.adapters = Adapters(layers, config.num_layers)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(TRAINED))
    if config.recompute_granularity is not None and model.pre_process:
        # A layer that is computed again gives no gradients unless its input asks for one.
        model.embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_(module.training))


Fuse = Callable[[torch.Tensor, list[torch.Tensor | None]], torch.Tensor]


def _extend(linear: torch.nn.Module, adapters: list[Adapter | None], fuse: Fuse) -> None:
    """Let a linear add its adapters' outputs, None where a part has no adapter."""

    def add(module, inputs, outputs):
        output, bias = outputs
        return fuse(output, [None if adapter is None else adapter(inputs[0]) for adapter in adapters]), bias

    linear.register_forward_hook(add)


def _fuse_rows(output: torch.Tensor, changes: list[torch.Tensor | None]) -> torch.Tensor:
    """output [s, b, out] of parts of one size, one after the other, each with its change added."""
    sides = output.chunk(len(changes), dim=-1)
    added = [side if change is None else side + change for side, change in zip(sides, changes, strict=True)]
    return added[0] if len(added) == 1 else torch.cat(added, dim=-1)


def _fuse_qkv(config: TransformerConfig, ranks: int) -> Fuse:
    """The same for query, key and value, which lie interleaved by query group."""
    groups, channels = config.num_query_groups // ranks, config.kv_channels
    widths = [config.num_attention_heads // config.num_query_groups * channels, channels, channels]

    def fuse(output: torch.Tensor, changes: list[torch.Tensor | None]) -> torch.Tensor:
        sides = output.unflatten(-1, (groups, -1)).split(widths, dim=-1)
        added = [
            side if change is None else side + change.unflatten(-1, (groups, -1))
            for side, change in zip(sides, changes, strict=True)
        ]
        return torch.cat(added, dim=-1).flatten(-2)

    return fuse


class _WithAdapters:
    """A model whose checkpoints hold what is trained alone. `part` names what is saved and loaded: "adapters", with a
    reward model's head, or "base", which is all but the adapters."""

    part = "adapters"

    def _has(self, name: str) -> bool:
        return name.startswith(TRAINED) if self.part == "adapters" else not name.startswith(f"{NAME}.")

    def sharded_state_dict(self, prefix: str = "", *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of the part alone."""
        weights = super().sharded_state_dict(prefix, *args, **kwargs)
        return {name: weight for name, weight in weights.items() if self._has(name.removeprefix(prefix))}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> Any:
        """Load the part; the rest stays as it is."""
        rest = {name: weight for name, weight in self.state_dict().items() if not self._has(name)}
        return super().load_state_dict(rest | dict(state_dict), strict=strict)


def with_adapters(model_class: type) -> type:
    """The class of a model that will get adapters by `attach`."""
    return type(f"{model_class.__name__}WithAdapters", (_WithAdapters, model_class), {})


def trained_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(name, weight) of all that a model's training changes."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
