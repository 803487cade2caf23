"""What kind of model a checkpoint holds, read from and written to Hugging Face's config.json and Megatron's arguments.

Whatever one of the two sides cannot express is an error that names it; nothing is dropped in silence.
"""

import dataclasses
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.convert.family import Family, Head, Sizes
from megatron_chimed.convert.llama import FAMILIES
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of Llama 3's scaling that Megatron has built in."""

SIZE_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}
"""`Sizes` in config.json."""


@dataclass(frozen=True)
class Architecture:
    """A model without its weights."""

    family: Family
    head: Head
    tied: bool
    sizes: Sizes
    norm_epsilon: float
    max_positions: int
    rope_base: int
    rope_type: str = "default"
    """default, linear or llama3."""

    rope_factor: float = 1.0


def read_hf(folder: Path) -> Architecture:
    """The architecture of a Hugging Face folder. Raises InputError as `from_hf`, and for a config.json that is none."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object")
    return from_hf(config, str(path))


def from_hf(config: dict[str, Any], where: str) -> Architecture:
    """The architecture in a config.json, of transformers 4 or 5; `where` names it in messages.

    Raises InputError listing all that is missing, of a wrong type, or not supported.
    """
    family, head = _family(config, where)
    sizes, problems = _sizes(config)
    rope = config.get("rope_parameters") or {}
    scaling = rope or config.get("rope_scaling") or {}
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    rope_type, factor = _rope(scaling, problems)
    if not isinstance(base, int | float) or base != int(base):
        problems.append(f"rope_theta is {base!r}; Megatron takes a whole number")
        base = 1
    for key, allowed in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("quantization_config", None),
    ):
        if config.get(key, allowed) not in (allowed, None):
            problems.append(f"{key} is {config[key]!r}; only {allowed!r} is supported")
    numbers = {}
    for key, default in (("rms_norm_eps", 1e-6), ("max_position_embeddings", 2048)):
        numbers[key] = config.get(key, default)
        if isinstance(numbers[key], bool) or not isinstance(numbers[key], int | float) or numbers[key] <= 0:
            problems.append(f"{key} is {numbers[key]!r}; expected a number above 0")
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    return Architecture(
        family,
        head,
        bool(config.get("tie_word_embeddings", False)),
        sizes,
        float(numbers["rms_norm_eps"]),
        int(numbers["max_position_embeddings"]),
        int(base),
        rope_type,
        factor,
    )


def _family(config: dict[str, Any], where: str) -> tuple[Family, Head]:
    """The family and head of config["architectures"]. Raises InputError naming it and what is supported."""
    given = config.get("architectures")
    name = given[0] if isinstance(given, list) and len(given) == 1 else given
    for family in FAMILIES:
        if isinstance(name, str) and name in family.architectures:
            return family, family.architectures[name]
    supported = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise InputError(f"{where}: architecture {name!r} is not supported; supported are {supported}")


def _sizes(config: dict[str, Any]) -> tuple[Sizes | None, list[str]]:
    """The sizes, and what is wrong with them."""
    values = {name: config.get(key) for name, key in SIZE_KEYS.items()}
    if values["groups"] is None:
        values["groups"] = values["heads"]
    heads, hidden = values["heads"], values["hidden"]
    if values["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        values["head_dim"] = hidden // heads
    wrong = [
        f"{SIZE_KEYS[name]} is {value!r}; expected a whole number above 0"
        for name, value in values.items()
        if type(value) is not int or value <= 0
    ]
    if not wrong and values["heads"] % values["groups"]:
        wrong.append(f"num_attention_heads ({heads}) is no multiple of num_key_value_heads ({values['groups']})")
    return None if wrong else Sizes(**values), wrong


def _rope(scaling: dict[str, Any], problems: list[str]) -> tuple[str, float]:
    """(type, factor) of a rope_scaling; what Megatron cannot do is added to `problems`."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return kind, 1.0
    factor = scaling.get("factor")
    if kind not in ("linear", "llama3"):
        problems.append(f"rope scaling of type {kind!r} is not supported; supported are default, linear, llama3")
    elif isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        problems.append(f"rope scaling has factor {factor!r}; expected a number above 0")
    elif kind == "linear" and factor != int(factor):
        problems.append(f"linear rope scaling has factor {factor}; Megatron takes a whole number")
    elif kind == "llama3":
        problems += [
            f"llama3 rope scaling has {key} {scaling.get(key)!r}; Megatron has {value} built in"
            for key, value in LLAMA3_ROPE.items()
            if scaling.get(key) != value
        ]
    return kind, float(factor) if isinstance(factor, int | float) else 1.0


def to_hf(architecture: Architecture, dtype: str, token_ids: dict[str, int | None]) -> dict[str, Any]:
    """A config.json in the form that transformers 4, transformers 5 and vLLM all read.

    dtype: such as "bfloat16"; token_ids: bos_token_id, eos_token_id and pad_token_id.
    """
    names = [name for name, head in architecture.family.architectures.items() if head == architecture.head]
    scaling = None
    if architecture.rope_type != "default":
        scaling = {"rope_type": architecture.rope_type, "factor": architecture.rope_factor}
        scaling |= LLAMA3_ROPE if architecture.rope_type == "llama3" else {}
    config = {
        "architectures": names[:1],
        "model_type": architecture.family.name,
        "torch_dtype": dtype,
        **{key: getattr(architecture.sizes, name) for name, key in SIZE_KEYS.items()},
        "hidden_act": "silu",
        "rms_norm_eps": architecture.norm_epsilon,
        "max_position_embeddings": architecture.max_positions,
        "rope_theta": float(architecture.rope_base),
        "rope_scaling": scaling,
        "tie_word_embeddings": architecture.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **token_ids,
    }
    if architecture.head == "reward":
        config |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return config


def to_megatron(architecture: Architecture) -> dict[str, Any]:
    """Megatron's arguments of the model by their option names, as they stand in a model YAML."""
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
    if sizes.groups != sizes.heads:
        settings |= {"group-query-attention": True, "num-query-groups": sizes.groups}
    if not architecture.tied:
        settings["untie-embeddings-and-output-weights"] = True
    if architecture.rope_type == "linear":
        settings["rotary-seq-len-interpolation-factor"] = int(architecture.rope_factor)
    elif architecture.rope_type == "llama3":
        settings |= {"use-rope-scaling": True, "rope-scaling-factor": architecture.rope_factor}
    return settings


def to_megatron_args(architecture: Architecture) -> Namespace:
    """The same as the arguments that a Megatron checkpoint carries, with what its loader looks for."""
    sizes = architecture.sizes
    flags = {"disable-bias-linear": ("add_bias_linear", False), "norm-epsilon": ("layernorm_epsilon", None)}
    values: dict[str, Any] = {"group_query_attention": False, "untie_embeddings_and_output_weights": False}
    for option, value in to_megatron(architecture).items():
        name, fixed = flags.get(option, (option.replace("-", "_"), None))
        values[name] = value if fixed is None else fixed
    return Namespace(
        **values,
        padded_vocab_size=sizes.vocab,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        world_size=1,
        data_parallel_size=1,
        no_save_optim=True,
        no_save_rng=True,
    )


_REQUIRED_ARGS = {
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "swiglu": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "layernorm_zero_centered_gamma": False,
    "apply_layernorm_1p": False,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "num_experts": None,
    "mtp_num_layers": None,
    "window_size": None,
    "no_rope_freq": None,
    "multi_latent_attention": False,
}
"""Megatron's arguments that Hugging Face's LLaMA has no words for, with the only value that it knows."""


def from_megatron_args(args: Namespace, head: Head, where: str) -> Architecture:
    """The architecture in the arguments of a Megatron checkpoint; `where` names it in messages.

    `Sizes.vocab` is --vocab-size where it was given, else the padded size. Raises InputError listing all that is
    missing or not LLaMA-shaped.
    """
    problems = [
        f"{name} is {getattr(args, name)!r}; Hugging Face's LLaMA has {value!r}"
        for name, value in _REQUIRED_ARGS.items()
        if getattr(args, name, value) not in (value, None)
    ]
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
        groups=args.num_query_groups if getattr(args, "group_query_attention", False) else heads,
        head_dim=getattr(args, "kv_channels", None) or args.hidden_size // heads,
        vocab=getattr(args, "vocab_size", None) or args.padded_vocab_size,
    )
    architecture = Architecture(
        FAMILIES[0],
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
