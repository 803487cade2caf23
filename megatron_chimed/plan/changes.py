"""Settings of a dry run: the job's, changed."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from megatron_chimed.config import Located, RunConfig


def apply(settings: RunConfig, changes: Mapping[str, Any], left_out: Iterable[str]) -> RunConfig:
    """Megatron's settings without `left_out` and with `changes`; packed attention by the kernel that is there."""
    gone = {*left_out, *changes}
    kept = {key: setting for key, setting in settings.megatron.items() if key not in gone}
    kept |= {key: Located(value, "command line") for key, value in changes.items()}
    chimed = settings.chimed
    if "attention" in chimed:
        chimed = chimed | {"attention": replace(chimed["attention"], value="auto")}
    return RunConfig(kept, chimed)
