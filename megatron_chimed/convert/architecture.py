"""Architecture of a model without its weights, read from and written to Hugging Face's config.json.

Whatever Megatron cannot express is an error that names it; nothing is dropped in silence.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.convert.family import Family
from megatron_chimed.convert.hf_keys import SIZE_KEYS, refused_keys
from megatron_chimed.convert.llama import FAMILIES
from megatron_chimed.convert.sizes import Head, Sizes
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of Llama 3's scaling that Megatron has built in."""


@dataclass(frozen=True)
class Architecture:
    """Architecture of a model: all but its weights."""

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
    """Read the architecture of a Hugging Face folder. Raises InputError as `from_hf`, and for no config.json."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object")
    return from_hf(config, str(path))


def from_hf(config: dict[str, Any], where: str) -> Architecture:
    """Read the architecture from a config.json, of transformers 4 or 5; `where` names it in messages.

    Raises InputError listing all that is missing, of a wrong type, not supported, or not known.
    """
    family, head = _family(config, where)
    sizes, problems = _sizes(config)
    rope = _rope_settings(config, problems)
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    rope_type, factor = _rope(rope, problems)
    if not isinstance(base, int | float) or base != int(base):
        problems.append(f"rope_theta is {base!r}; Megatron takes a whole number")
        base = 1
    problems += refused_keys(config, rope, family)
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
    """Find the family and head of config["architectures"]. Raises InputError naming it and what is supported."""
    given = config.get("architectures")
    name = given[0] if isinstance(given, list) and len(given) == 1 else given
    for family in FAMILIES:
        if isinstance(name, str) and name in family.architectures:
            return family, family.architectures[name]
    supported = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise InputError(f"{where}: architecture {name!r} is not supported; supported are {supported}")


def _sizes(config: dict[str, Any]) -> tuple[Sizes | None, list[str]]:
    """Read the sizes, and list what is wrong with them."""
    values = {name: config.get(key) for name, key in SIZE_KEYS.items()}
    if values["num_query_groups"] is None:
        values["num_query_groups"] = values["heads"]
    heads, hidden = values["heads"], values["hidden"]
    if values["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        values["head_dim"] = hidden // heads
    wrong = [
        f"{SIZE_KEYS[name]} is {value!r}; expected a whole number above 0"
        for name, value in values.items()
        if type(value) is not int or value <= 0
    ]
    if not wrong and values["heads"] % values["num_query_groups"]:
        groups = values["num_query_groups"]
        wrong.append(f"num_attention_heads ({heads}) is no multiple of num_key_value_heads ({groups})")
    return None if wrong else Sizes(**values), wrong


def _rope_settings(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Find rope_parameters (transformers 5) or rope_scaling (before); what is wrong is added to `problems`."""
    given = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    wrong = [f"{key} is {value!r}; expected an object" for key, value in given.items() if not isinstance(value, dict)]
    if not wrong and len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        wrong.append("rope_parameters and rope_scaling are both given, and differ; keep one of them")
    problems += wrong
    return {} if wrong else next(iter(given.values()), {})


def _rope(scaling: dict[str, Any], problems: list[str]) -> tuple[str, float]:
    """Read (type, factor) of a rope_scaling; what Megatron cannot do is added to `problems`."""
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
    """Make a config.json in the form that transformers 4, transformers 5 and vLLM all read.

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
