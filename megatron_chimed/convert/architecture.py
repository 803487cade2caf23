"""Architecture of a model without its weights, read from and written to Hugging Face's config.json.

Whatever Megatron cannot express is an error that names it; nothing is dropped in silence.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.convert import rope as positions
from megatron_chimed.convert.families import FAMILIES, of_architecture, refused
from megatron_chimed.convert.family import Family
from megatron_chimed.convert.hf_keys import SIZE_KEYS, refused_keys
from megatron_chimed.convert.rope import Rope
from megatron_chimed.convert.sizes import Head, Sizes
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json


@dataclass(frozen=True)
class Architecture:
    """Architecture of a model: all but its weights."""

    family: Family
    head: Head
    tied: bool
    sizes: Sizes
    norm_epsilon: float
    max_positions: int
    rope: Rope = Rope()


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
    config = family.hf_defaults | config
    sizes, problems = _sizes(config, family)
    numbers = {}
    for key, default in (("rms_norm_eps", 1e-6), ("max_position_embeddings", 2048)):
        numbers[key] = config.get(key, default)
        if isinstance(numbers[key], bool) or not isinstance(numbers[key], int | float) or numbers[key] <= 0:
            problems.append(f"{key} is {numbers[key]!r}; expected a number above 0")
    rope, given = positions.read_hf(config, numbers["max_position_embeddings"], problems)
    problems += refused_keys(config, given, family)
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    return Architecture(
        family,
        head,
        bool(config.get("tie_word_embeddings", False)),
        sizes,
        float(numbers["rms_norm_eps"]),
        int(numbers["max_position_embeddings"]),
        rope,
    )


def _family(config: dict[str, Any], where: str) -> tuple[Family, Head]:
    """Find the family and head of config["architectures"]. Raises InputError naming it, why, and what is supported."""
    given = config.get("architectures")
    name = given[0] if isinstance(given, list) and len(given) == 1 else given
    if (found := of_architecture(name)) is not None:
        return found
    supported = ", ".join(name for family in FAMILIES for name in family.architectures)
    reason = refused.bracketed(refused.ARCHITECTURES, name)
    raise InputError(f"{where}: architecture {name!r} is not supported{reason}; supported are {supported}")


def _sizes(config: dict[str, Any], family: Family) -> tuple[Sizes | None, list[str]]:
    """Read the sizes, and list what is wrong with them."""
    values = {name: config.get(key) for name, key in SIZE_KEYS.items()}
    if values["num_query_groups"] is None:
        values["num_query_groups"] = values["heads"]
    heads, hidden = values["heads"], values["hidden"]
    follows = values["head_dim"] is None and "head_dim" not in family.hf_defaults
    if follows and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
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


def to_hf(architecture: Architecture, dtype: str, token_ids: dict[str, Any]) -> dict[str, Any]:
    """Make a config.json in the form that transformers 4, transformers 5 and vLLM all read.

    dtype: such as "bfloat16"; token_ids: bos_token_id, eos_token_id and pad_token_id.
    """
    family = architecture.family
    names = [name for name, head in family.architectures.items() if head == architecture.head]
    config = {
        "architectures": names[:1],
        "model_type": family.name,
        "torch_dtype": dtype,
        **{key: getattr(architecture.sizes, name) for name, key in SIZE_KEYS.items()},
        "hidden_act": "silu",
        "rms_norm_eps": architecture.norm_epsilon,
        "max_position_embeddings": architecture.max_positions,
        "rope_theta": float(architecture.rope.base),
        "rope_scaling": positions.to_hf(architecture.rope),
        "tie_word_embeddings": architecture.tied,
        **{key: family.fixed_hf_keys[key] for key in family.written_hf_keys},
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **token_ids,
    }
    if architecture.head == "reward":
        config |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return config
