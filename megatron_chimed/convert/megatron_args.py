"""Architecture of a model read from and written to Megatron's arguments.

Whatever config.json cannot express is an error that names it; nothing is dropped in silence.
"""

import dataclasses
from argparse import Namespace
from typing import Any

from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.llama import FAMILIES
from megatron_chimed.convert.sizes import Head, Sizes
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError


def read_megatron(source: TorchDistCheckpoint) -> Architecture:
    """Read the architecture of a checkpoint: the head is told by its tensors, the rest by its arguments.

    Raises InputError as `from_megatron_args`.
    """
    return from_megatron_args(source.args, FAMILIES[0].head_of(source.tensors), str(source.folder))


def to_megatron(architecture: Architecture) -> dict[str, Any]:
    """Make Megatron's arguments of the model, by their option names, as they stand in a model YAML."""
    sizes = architecture.sizes
    settings = {
        "num-layers": sizes.layers,
        "hidden-size": sizes.hidden,
        "ffn-hidden-size": sizes.ffn,
        "num-attention-heads": sizes.heads,
        "kv-channels": sizes.head_dim,
        "max-position-embeddings": architecture.max_positions,
        "position-embedding-type": "rope",
        "rotary-base": architecture.rope_base,
        "normalization": "RMSNorm",
        "norm-epsilon": architecture.norm_epsilon,
        "swiglu": True,
        "disable-bias-linear": True,
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
        "vocab-size": sizes.vocab,
    }
    if sizes.num_query_groups != sizes.heads:
        settings |= {"group-query-attention": True, "num-query-groups": sizes.num_query_groups}
    if not architecture.tied:
        settings["untie-embeddings-and-output-weights"] = True
    if architecture.rope_type == "linear":
        settings["rotary-seq-len-interpolation-factor"] = int(architecture.rope_factor)
    elif architecture.rope_type == "llama3":
        settings |= {"use-rope-scaling": True, "rope-scaling-factor": architecture.rope_factor}
    return settings


def to_megatron_args(settings: dict[str, Any]) -> Namespace:
    """Make the arguments that a Megatron checkpoint carries of `to_megatron`'s, with what its loader looks for."""
    flags = {"disable-bias-linear": ("add_bias_linear", False), "norm-epsilon": ("layernorm_epsilon", None)}
    values: dict[str, Any] = {"group_query_attention": False, "untie_embeddings_and_output_weights": False}
    for option, value in settings.items():
        name, fixed = flags.get(option, (option.replace("-", "_"), None))
        values[name] = value if fixed is None else fixed
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


def unexportable(args: Namespace) -> list[str]:
    """List the arguments of a model that no family's config.json can express, as ``name is ...; ... has ...``."""
    return [
        f"{name} is {getattr(args, name)!r}; Hugging Face's LLaMA has {value!r}"
        for name, value in FAMILIES[0].fixed_args.items()
        if getattr(args, name, value) not in (value, None)
    ]


def from_megatron_args(args: Namespace, head: Head, where: str) -> Architecture:
    """Read the architecture from the arguments of a Megatron checkpoint; `where` names it in messages.

    `Sizes.vocab` is --vocab-size where it was given, else the padded size. Raises InputError listing all that is
    missing or not LLaMA-shaped.
    """
    family, problems = FAMILIES[0], unexportable(args)
    needed = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "padded_vocab_size")
    problems += [f"{name} is missing" for name in needed if type(getattr(args, name, None)) is not int]
    if problems:
        raise InputError(f"{where}: the checkpoint's arguments are not those of a LLaMA: " + "; ".join(problems))
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
    architecture = Architecture(
        family,
        head,
        not getattr(args, "untie_embeddings_and_output_weights", False),
        sizes,
        getattr(args, "layernorm_epsilon", 1e-5),
        getattr(args, "max_position_embeddings", None) or 2048,
        int(getattr(args, "rotary_base", 10000)),
    )
    if getattr(args, "use_rope_scaling", False):
        return dataclasses.replace(architecture, rope_type="llama3", rope_factor=float(args.rope_scaling_factor))
    if factor := getattr(args, "rotary_seq_len_interpolation_factor", None):
        return dataclasses.replace(architecture, rope_type="linear", rope_factor=float(factor))
    return architecture
