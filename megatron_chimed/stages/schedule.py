"""The length of a run from a number of epochs, with its warm-up."""

import math
from pathlib import Path
from typing import Any

from megatron_chimed.config import Located, RunConfig, parse_dataclass
from megatron_chimed.errors import InputError
from megatron_chimed.packing.packed_rows import read_manifest
from megatron_chimed.stages.options import STAGES, DpoConfig, RewardConfig

WARMUP_SHARE, LEAST_WARMUP = 0.03, 5
"""Warm-up of the paper's reward model: 3% of the steps, five at least (arXiv 2311.06025)."""


def by_epochs(config: RewardConfig | DpoConfig, settings: dict[str, Located]) -> dict[str, Any]:
    """Megatron's arguments for config.epochs over the rows of --train-data-path; {} where epochs is None.

    --train-iters on the command line wins over epochs; a warm-up that is given is left as it is. Raises InputError when
    the files give both lengths, or what is needed to compute one is missing.
    """
    length = settings.get("train-iters") or settings.get("train-samples")
    if config.epochs is not None and length is not None and length.where != "command line":
        raise InputError(
            f"{length.where}: the length of the run is given here, and as epochs: {config.epochs}; keep one"
        )
    if length is None and config.epochs is None:
        return {}
    iterations = int(str(length.value)) if length is not None else _iterations(config.epochs, settings)
    chosen = {} if length is not None else {"train-iters": iterations}
    if "lr-decay-iters" not in settings:
        chosen["lr-decay-iters"] = iterations
    if not any(key.startswith("lr-warmup-") for key in settings):
        warmup = max(math.ceil(WARMUP_SHARE * iterations), LEAST_WARMUP)
        chosen["lr-warmup-iters"] = min(warmup, iterations - 1)  # Megatron wants steps behind it
    return chosen


def _iterations(epochs: int, settings: dict[str, Located]) -> int:
    """Steps of so many epochs; the last one of the run may begin another."""
    if epochs < 1:
        raise InputError(f"epochs: {epochs}; expected 1 or more")
    needed = ("train-data-path", "global-batch-size")
    for key in needed:
        if key not in settings:
            raise InputError(f"epochs: {epochs} needs --{key}; give it, or --train-iters in the place of epochs")
    paths, batch = (settings[key].value for key in needed)
    rows = 0
    for path in paths if isinstance(paths, list) else [paths]:
        if str(path).replace(".", "", 1).isdecimal():
            raise InputError("epochs: a weighted --train-data-path has none; give --train-iters")
        rows += read_manifest(Path(str(path)))["rows"]
    if not str(batch).isdecimal() or not int(str(batch)):
        raise InputError(f"--global-batch-size {batch}: expected a whole number above 0")
    return math.ceil(epochs * rows / int(str(batch)))


def planned_iterations(stage: str, settings: RunConfig, global_batch: int | None = None) -> int:
    """The iterations that a stage's settings ask for; global_batch: where the settings do not give it.

    Raises InputError when they ask for none, or it follows from data that cannot be read.
    """
    given = settings.megatron
    kind = STAGES[stage]
    if kind in (RewardConfig, DpoConfig):
        known = kind.__dataclass_fields__
        config = parse_dataclass({key: one for key, one in settings.chimed.items() if key in known}, kind)[0]
        given = {key: Located(value, "epochs") for key, value in by_epochs(config, given).items()} | given
    if "train-samples" in given:
        return whole_number(given, "train-samples") // whole_number(given, "global-batch-size", global_batch)
    return whole_number(given, "train-iters")


def whole_number(given: dict[str, Located], key: str, default: int | None = None) -> int:
    """A whole number above 0. Raises InputError."""
    setting = given.get(key, Located(default, "default"))
    if setting.value is None:
        raise InputError(f"no --{key} is given; give it in one of the YAML files")
    if isinstance(setting.value, bool) or not str(setting.value).isdecimal() or not int(str(setting.value)):
        raise InputError(f"{setting.where}: {key}: expected a whole number above 0, found {setting.value!r}")
    return int(str(setting.value))
