"""Rotary positions of a model: base and scaling, as config.json, Megatron's arguments and our options have them.

Sources: Su et al., 2021, arXiv 2104.09864; linear scaling: Chen et al., 2023, arXiv 2306.15595; YaRN: Peng et al.,
2023, arXiv 2309.00071; llama3: transformers, `modeling_rope_utils.py`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.convert.families import refused
from megatron_chimed.errors import short
from megatron_chimed.models.options import ModelOptions

KINDS = ("default", "linear", "llama3", "yarn")
LLAMA3_OPTIONS = ("llama3_low_freq_factor", "llama3_high_freq_factor", "llama3_original_max_position_embeddings")
DIGITS = 12
"""Digits of an attention factor: Megatron has a factor of its logarithm in the place of the number itself."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions: what a scaling has not stays as it stands here."""

    base: int = 10000
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0

    original_positions: int = 0
    """Context of the model before it was scaled; of llama3 and yarn."""

    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    """Of llama3: original_positions over the wavelengths between which it goes over to the scaled ones."""

    beta_fast: float = 0.0
    beta_slow: float = 0.0
    """Of yarn: turns in original_positions from which on a dimension stays, and up to which it is scaled."""

    attention_factor: float = 1.0
    """Of yarn: both query and key are multiplied by it."""

    truncate: bool = True
    """Of yarn: the bounds of the dimensions between are rounded to whole ones."""


def read_hf(config: dict[str, Any], max_positions: object, problems: list[str]) -> tuple[Rope, dict[str, Any]]:
    """Read (positions, the settings as they stand) of a config.json, of transformers 4 or 5.

    max_positions: what stands for a missing original_max_position_embeddings. What is wrong, or not served, is added to
    `problems`.
    """
    given = _settings(config, problems)
    bases = [place["rope_theta"] for place in (given, config) if "rope_theta" in place]
    base = bases[0] if bases else 10000.0
    if bases[1:] and bases[1] != base:
        problems.append(f"rope_theta is {short(bases[1])}, and {short(base)} in the rope settings; keep one of them")
    if not is_number(base) or base != int(base) or base <= 0:
        problems.append(f"rope_theta is {short(base)}; Megatron takes a whole number")
        base = 1
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in KINDS:
        reason = refused.bracketed(refused.SCALINGS, kind)
        problems.append(
            f"rope scaling of type {short(kind)} is not supported{reason}; supported are {', '.join(KINDS)}"
        )
        return Rope(int(base)), given
    if kind == "default":
        return Rope(int(base)), given
    read = _Numbers(given, problems)
    if kind == "linear":
        factor = read.number("factor")
        if factor != int(factor):
            problems.append(f"linear rope scaling has factor {factor}; Megatron takes a whole number")
        return Rope(int(base), "linear", factor), given
    original = read.number("original_max_position_embeddings", max_positions)
    if original != int(original):
        problems.append(f"rope scaling has original_max_position_embeddings {original}; expected a whole number")
    if kind == "llama3":
        low, high = read.number("low_freq_factor"), read.number("high_freq_factor")
        if high <= low and not problems:
            problems.append(f"rope scaling has high_freq_factor {high}; expected more than low_freq_factor ({low})")
        return Rope(int(base), "llama3", read.number("factor"), int(original), low, high), given
    return _read_yarn(read, int(base), int(original), max_positions), given


def _settings(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Find rope_parameters (transformers 5) or rope_scaling (before); what is wrong is added to `problems`."""
    given = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    wrong = [
        f"{key} is {short(value)}; expected an object" for key, value in given.items() if not isinstance(value, dict)
    ]
    if not wrong and len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        wrong.append("rope_parameters and rope_scaling are both given, and differ; keep one of them")
    problems += wrong
    return {} if wrong else next(iter(given.values()), {})


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number: no flag, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _Numbers:
    """Numbers of the settings; what is none is added to the problems, and 1 stands for it."""

    def __init__(self, given: dict[str, Any], problems: list[str]):
        self.given, self.problems = given, problems

    def number(self, key: str, default: object = None) -> float:
        """A number above 0; `default` stands for one that is missing or null."""
        value = default if self.given.get(key) is None else self.given[key]
        if not is_number(value) or value <= 0:
            self.problems.append(f"rope scaling has {key} {short(self.given.get(key))}; expected a number above 0")
            return 1.0
        return float(value)


def _read_yarn(read: _Numbers, base: int, original: int, max_positions: object) -> Rope:
    """Read yarn, with the defaults of transformers for what is not given."""
    ratio = max_positions / original if type(max_positions) is int else None
    factor = read.number("factor", ratio)
    natural = mscale(factor)
    parts = [read.given.get(key) for key in ("mscale", "mscale_all_dim")]
    if all(parts):
        one, all_dim = (read.number(key) for key in ("mscale", "mscale_all_dim"))
        natural = mscale(factor, one) / mscale(factor, all_dim)
    attention = round(read.number("attention_factor", natural), DIGITS)
    if factor <= 1 and attention != 1:
        read.problems.append(f"yarn has attention_factor {attention} with factor {factor}; Megatron then has 1")
    truncate = read.given.get("truncate", True)
    if not isinstance(truncate, bool):
        read.problems.append(f"rope scaling has truncate {short(truncate)}; expected true or false")
    fast, slow = read.number("beta_fast", 32.0), read.number("beta_slow", 1.0)
    return Rope(
        base, "yarn", factor, original, beta_fast=fast, beta_slow=slow, attention_factor=attention, truncate=truncate
    )


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's factor of attention for a context `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def yarn_mscale(rope: Rope) -> float:
    """Megatron's factor of the logarithm, from which it computes the attention factor."""
    if rope.factor <= 1 or rope.attention_factor == round(mscale(rope.factor), DIGITS):
        return 1.0
    return (rope.attention_factor - 1) / (0.1 * math.log(rope.factor))


def to_hf(rope: Rope) -> dict[str, Any] | None:
    """Make config.json's rope_scaling; None without scaling."""
    if rope.kind == "default":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = rope.original_positions
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.attention_factor != round(mscale(rope.factor), DIGITS):
            scaling["attention_factor"] = rope.attention_factor
        if not rope.truncate:
            scaling["truncate"] = False
    return scaling


def to_megatron(rope: Rope) -> dict[str, Any]:
    """Make Megatron's arguments of the scaling, by their option names."""
    if rope.kind == "linear":
        return {"rotary-seq-len-interpolation-factor": int(rope.factor)}
    if rope.kind == "llama3":
        return {"use-rope-scaling": True, "rope-scaling-factor": rope.factor}
    if rope.kind == "default":
        return {}
    settings: dict[str, Any] = {
        "rotary-scaling-factor": rope.factor,
        "yarn-original-max-position-embeddings": rope.original_positions,
        "yarn-beta-fast": rope.beta_fast,
        "yarn-beta-slow": rope.beta_slow,
    }
    if (weight := yarn_mscale(rope)) != 1:
        settings["mscale"] = weight
    if not rope.truncate:
        settings["no-yarn-correction-range-round-to-int"] = True
    return settings


def to_options(rope: Rope) -> dict[str, Any]:
    """Make the options of the model (`ModelOptions`) for what Megatron has no arguments for."""
    if rope.kind != "llama3":
        return {}
    values = (rope.low_freq_factor, rope.high_freq_factor, rope.original_positions)
    options = dict(zip(LLAMA3_OPTIONS, values, strict=True))
    return {name: value for name, value in options.items() if value != getattr(ModelOptions, name)}


def problems_of_args(args: dict[str, Any], options: ModelOptions) -> list[str]:
    """List what of Megatron's arguments and the model's options no scaling has."""
    kind, found = args.get("position_embedding_type", "rope"), []
    if kind not in ("rope", "yarn"):
        found.append(f"position_embedding_type is {short(kind)}; expected rope or yarn")
    linear, llama3 = args.get("rotary_seq_len_interpolation_factor"), args.get("use_rope_scaling")
    if sum((bool(linear), bool(llama3), kind == "yarn")) > 1:
        found.append(
            "of rotary_seq_len_interpolation_factor, use_rope_scaling and position_embedding_type yarn more than one "
            "is given; keep one"
        )
    for name in LLAMA3_OPTIONS:
        value, default = getattr(options, name), getattr(ModelOptions, name)
        if value <= 0:
            found.append(f"{name} is {value}; expected a number above 0")
        elif value != default and not llama3:
            found.append(f"{name} is {value}, and use_rope_scaling is not given")
    if options.llama3_high_freq_factor <= options.llama3_low_freq_factor:
        found.append("llama3_high_freq_factor is not above llama3_low_freq_factor")
    return found


def from_args(args: dict[str, Any], options: ModelOptions) -> Rope:
    """Read positions from Megatron's arguments, which have none of `problems_of_args`, and the model's options."""
    base = int(args.get("rotary_base", 10000))
    if args.get("position_embedding_type") == "yarn":
        return _yarn_from_args(args, base)
    if args.get("use_rope_scaling"):
        return Rope(
            base,
            "llama3",
            float(args["rope_scaling_factor"]),
            options.llama3_original_max_position_embeddings,
            options.llama3_low_freq_factor,
            options.llama3_high_freq_factor,
        )
    if factor := args.get("rotary_seq_len_interpolation_factor"):
        return Rope(base, "linear", float(factor))
    return Rope(base)


def _yarn_from_args(args: dict[str, Any], base: int) -> Rope:
    """Read yarn, with Megatron's defaults (`_apply_yarn_config_from_args`) for what is not given."""

    def given(name: str, default: float) -> float:
        return default if args.get(name) is None else args[name]

    factor = float(given("rotary_scaling_factor", 1.0))
    attention = mscale(factor, given("mscale", 1.0)) / mscale(factor, given("mscale_all_dim", 0.0))
    return Rope(
        base,
        "yarn",
        factor,
        int(given("yarn_original_max_position_embeddings", 4096)),
        beta_fast=float(given("yarn_beta_fast", 32.0)),
        beta_slow=float(given("yarn_beta_slow", 1.0)),
        attention_factor=round(attention, DIGITS),
        truncate=bool(given("yarn_correction_range_round_to_int", True)),
    )
