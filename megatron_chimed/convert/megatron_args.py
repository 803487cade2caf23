"""Architecture of a model read from and written to Megatron's arguments.

Whatever config.json cannot express is an error that names it; nothing is dropped in silence.
"""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from megatron_chimed.convert import rope, routing
from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.families import FAMILIES, of_args
from megatron_chimed.convert.families.blocks import ABSENT
from megatron_chimed.convert.family import SOME
from megatron_chimed.convert.sizes import Head, Sizes
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError
from megatron_chimed.models.options import ModelOptions

OPTIONS = "chimed"
"""Name in a checkpoint's arguments of the model's options that are not the default."""

OFF = {
    "disable-bias-linear": "add_bias_linear",
    "no-yarn-correction-range-round-to-int": "yarn_correction_range_round_to_int",
}
"""Options of Megatron that set another argument to False."""

OTHER_NAMES = {"norm-epsilon": "layernorm_epsilon"}
"""Options of Megatron whose argument has another name."""


def read_megatron(source: TorchDistCheckpoint) -> Architecture:
    """Read the architecture of a checkpoint: the head is told by its tensors, the rest by its arguments.

    Raises InputError as `from_megatron_args`.
    """
    return from_megatron_args(source.args, FAMILIES[0].head_of(source.tensors), str(source.folder))


def to_megatron(architecture: Architecture) -> dict[str, Any]:
    """Make Megatron's arguments of the model, by their option names, as they stand in a model YAML."""
    sizes, stated = architecture.sizes, _stated(architecture.family.fixed_args)
    settings = {
        "num-layers": sizes.layers,
        "hidden-size": sizes.hidden,
        "ffn-hidden-size": sizes.ffn,
        "num-attention-heads": sizes.heads,
        "kv-channels": sizes.head_dim,
        "max-position-embeddings": architecture.max_positions,
        "position-embedding-type": "yarn" if architecture.rope.kind == "yarn" else "rope",
        "rotary-base": architecture.rope.base,
        "normalization": stated.pop("normalization"),
        "norm-epsilon": architecture.norm_epsilon,
        **stated,
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
        "vocab-size": sizes.vocab,
    }
    if sizes.num_query_groups != sizes.heads:
        settings |= {"group-query-attention": True, "num-query-groups": sizes.num_query_groups}
    if not architecture.tied:
        settings["untie-embeddings-and-output-weights"] = True
    if architecture.routing is not None:
        settings |= routing.to_megatron(architecture.routing, sizes)
    return settings | rope.to_megatron(architecture.rope)


def _stated(fixed_args: dict[str, Any]) -> dict[str, Any]:
    """The fixed arguments that are not Megatron's defaults, by their option names."""
    options = {name: option for option, name in OFF.items()}
    given = {name: value for name, value in fixed_args.items() if name not in ABSENT or value != ABSENT[name]}
    given = {name: value for name, value in given.items() if value is not SOME}
    return {options.get(name, name.replace("_", "-")): True if name in options else v for name, v in given.items()}


def to_options(architecture: Architecture) -> dict[str, Any]:
    """Make the options of the model, for the ``chimed:`` block of a model YAML: what Megatron has no arguments for."""
    family = architecture.family
    alone = of_args(family.fixed_args)[0] is family
    return ({} if alone else {"family": family.name}) | rope.to_options(architecture.rope)


def to_megatron_args(settings: dict[str, Any], options: dict[str, Any]) -> Namespace:
    """Make the arguments that a Megatron checkpoint carries of `to_megatron`'s and `to_options`', with what its loader
    looks for."""
    values: dict[str, Any] = {"group_query_attention": False, "untie_embeddings_and_output_weights": False}
    for option, value in settings.items():
        if option in OFF:
            values[OFF[option]] = False
        else:
            values[OTHER_NAMES.get(option, option.replace("-", "_"))] = value
    if options:
        values[OPTIONS] = options
    return Namespace(
        **values,
        padded_vocab_size=settings["vocab-size"],
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        world_size=1,
        data_parallel_size=1,
        no_save_optim=True,
        no_save_rng=True,
    )


def unexportable(args: Namespace, options: ModelOptions | None = None) -> list[str]:
    """List the arguments of a model that no family's config.json can express, as ``name is ...; ... has ...``.

    Raises InputError when the options name a family that there is not.
    """
    options = options or ModelOptions()
    return of_args(vars(args), options.family)[1] + rope.problems_of_args(vars(args), options)


def from_megatron_args(args: Namespace, head: Head, where: str) -> Architecture:
    """Read the architecture from the arguments of a Megatron checkpoint; `where` names it in messages.

    `Sizes.vocab` is --vocab-size where it was given, else the padded size. Raises InputError listing all that is
    missing, or that no family has.
    """
    try:
        options = ModelOptions(**getattr(args, OPTIONS, {}))
        family, _ = of_args(vars(args), options.family)
        problems = unexportable(args, options)
    except (InputError, TypeError) as error:  # options of another version
        raise InputError(f"{where}: {error}") from None
    needed = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "padded_vocab_size")
    needed += ("num_experts",) if family.has_experts else ()
    problems += [f"{name} is missing" for name in needed if type(getattr(args, name, None)) is not int]
    if problems:
        raise InputError(
            f"{where}: the checkpoint's arguments are not those of a {family.title}: {'; '.join(problems)}"
        )
    heads = args.num_attention_heads
    sizes = Sizes(
        layers=args.num_layers,
        hidden=args.hidden_size,
        ffn=args.ffn_hidden_size,
        heads=heads,
        num_query_groups=args.num_query_groups if getattr(args, "group_query_attention", False) else heads,
        head_dim=getattr(args, "kv_channels", None) or args.hidden_size // heads,
        vocab=getattr(args, "vocab_size", None) or args.padded_vocab_size,
    )
    if family.has_experts:
        expert_ffn = getattr(args, "moe_ffn_hidden_size", None) or sizes.ffn
        sizes = replace(sizes, experts=args.num_experts, expert_ffn=expert_ffn)
    return Architecture(
        family,
        head,
        not getattr(args, "untie_embeddings_and_output_weights", False),
        sizes,
        getattr(args, "layernorm_epsilon", 1e-5),
        getattr(args, "max_position_embeddings", None) or 2048,
        rope.from_args(vars(args), options),
        routing.from_args(vars(args), sizes) if family.has_experts else None,
    )
