"""Architecture of a model without its weights, read from and written to Hugging Face's config.json.

Whatever Megatron cannot express is an error that names it; nothing is dropped in silence.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.convert import rope as positions
from megatron_chimed.convert import routing as routers
from megatron_chimed.convert.families import FAMILIES, of_architecture, refused
from megatron_chimed.convert.family import Family
from megatron_chimed.convert.hf_keys import SIZE_KEYS, refused_keys
from megatron_chimed.convert.rope import Rope
from megatron_chimed.convert.routing import Routing
from megatron_chimed.convert.sizes import Head, Sizes
from megatron_chimed.errors import InputError, short
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
    routing: Routing | None = None
    """Of a family with experts."""


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
    config, problems = _plain_names(config, family)
    config = family.hf_defaults | config
    sizes = _sizes(config, family, problems)
    routing = routers.read_hf(config, sizes, problems) if family.has_experts else None
    epsilon, length = config.get("rms_norm_eps", 1e-6), config.get("max_position_embeddings", 2048)
    tied = config.get("tie_word_embeddings")
    if not positions.is_number(epsilon) or epsilon <= 0:
        problems.append(f"rms_norm_eps is {short(epsilon)}; expected a number above 0")
    if not _is_size(length):
        problems.append(f"max_position_embeddings is {short(length)}; expected a whole number above 0")
    if not isinstance(tied, bool | None):
        problems.append(f"tie_word_embeddings is {short(tied)}; expected true or false")
    rope, given = positions.read_hf(config, length, problems)
    problems += refused_keys(config, given, family)
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    return Architecture(
        family,
        head,
        bool(tied),
        sizes,
        float(epsilon),
        length,
        rope,
        routing,
    )


def _family(config: dict[str, Any], where: str) -> tuple[Family, Head]:
    """Find the family and head of config["architectures"]. Raises InputError naming it, why, and what is supported."""
    given = config.get("architectures")
    name = given[0] if isinstance(given, list) and len(given) == 1 else given
    if (found := of_architecture(name)) is not None:
        return found
    supported = ", ".join(name for family in FAMILIES for name in family.architectures)
    reason = refused.bracketed(refused.ARCHITECTURES, name)
    raise InputError(f"{where}: architecture {short(name)} is not supported{reason}; supported are {supported}")


def _plain_names(config: dict[str, Any], family: Family) -> tuple[dict[str, Any], list[str]]:
    """The keys under the names that are read, and what is wrong with two names of one."""
    problems = [
        f"{alias} is {short(config[alias])} and {name} {short(config[name])}, two names of one number; make them one"
        for alias, name in family.hf_aliases.items()
        if {alias, name} <= config.keys() and config[alias] != config[name]
    ]
    return {family.hf_aliases.get(key, key): value for key, value in config.items()}, problems


def _sizes(config: dict[str, Any], family: Family, problems: list[str]) -> Sizes | None:
    """Read the sizes; what is wrong with them is added to `problems`, and then there are none."""
    keys = SIZE_KEYS | family.size_keys
    values = {name: config.get(key) for name, key in keys.items()}
    if values["num_query_groups"] is None:
        values["num_query_groups"] = values["heads"]
    heads, hidden = values["heads"], values["hidden"]
    follows = values["head_dim"] is None and "head_dim" not in family.hf_defaults
    if follows and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        values["head_dim"] = hidden // heads
    wrong = [
        f"{keys[name]} is {short(value)}; expected a whole number above 0"
        for name, value in values.items()
        if not _is_size(value)
    ]
    if not wrong and values["heads"] % values["num_query_groups"]:
        groups = values["num_query_groups"]
        wrong.append(f"num_attention_heads ({heads}) is no multiple of num_key_value_heads ({groups})")
    problems += wrong
    return None if wrong else Sizes(**values)


def _is_size(value: object) -> bool:
    """Whether a value of JSON is a size: a whole number above 0, and of a model that could be."""
    return type(value) is int and 0 < value < 2**31


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
        **{key: getattr(architecture.sizes, name) for name, key in (SIZE_KEYS | family.size_keys).items()},
        **(routers.to_hf(architecture.routing) if architecture.routing else {}),
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
