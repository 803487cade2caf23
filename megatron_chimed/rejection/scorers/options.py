"""Options of the scorers, a dataclass for each kind of engine, and how `scorer` and `grader` of the YAML are read.

Each is one mapping, or a list of them: then the reward of an answer is the sum of their scores, each times its
``weight``. Scores are taken as they are, never standardised: what 1 means is the scorer's own affair, and standardised
by the answers of a round it would be another in the next one. So weights carry the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_chimed.checkpoints import split_adapter
from megatron_chimed.config import Located, parse_dataclass
from megatron_chimed.errors import InputError
from megatron_chimed.judging.options import JudgeOptions, Problem


@dataclass(frozen=True)
class ScorerOptions:
    """A reward model."""

    engine: Literal["megatron", "hf", "vllm"] = "megatron"
    """The reward checkpoint, or its Hugging Face export in transformers or in vLLM."""

    batch_size: int = 64
    """Answers that are scored together and stored together."""

    tensor_parallel: int = 1
    """Ranks that share the model (megatron, vllm)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""

    reward: str = ""
    """The model's folder; the configuration's ``reward`` if not given."""

    weight: float = 1.0
    """Of the score in the reward."""

    def problems(self) -> list[Problem]:
        """The fields that are out of their range."""
        return [(name, "1 or more") for name in ("batch_size", "tensor_parallel") if getattr(self, name) < 1]

    def decisive(self) -> dict[str, Any]:
        """What decides the scores; the rest decides how fast they come."""
        return {"engine": self.engine, "dtype": self.dtype}

    def files(self, reward: str) -> list[Path]:
        """What is read beside the answers. reward: the configuration's."""
        return [folder for folder in split_adapter(self.reward or reward) if folder is not None]


@dataclass(frozen=True)
class RulesOptions:
    """A command of the user's; see `command`."""

    engine: Literal["rules"] = "rules"
    """``rules``."""

    command: list[str] = field(default_factory=list)
    """Its words; it is called with one more, a file of answers."""

    weight: float = 1.0
    """Of the score in the reward."""

    def problems(self) -> list[Problem]:
        """The fields that are out of their range."""
        return [] if self.command else [("command", "a list of words")]

    def decisive(self) -> dict[str, Any]:
        """What decides the scores."""
        return {"engine": self.engine, "command": self.command}

    def files(self, reward: str) -> list[Path]:
        """Those that the command names: a script that has changed gives other scores."""
        return [Path(word) for word in self.command if Path(word).is_file()]


Options = ScorerOptions | RulesOptions | JudgeOptions
KINDS: dict[str, type] = dict.fromkeys(("megatron", "hf", "vllm"), ScorerOptions)
KINDS |= {"rules": RulesOptions, "judge": JudgeOptions}


def read_scorers(setting: Located, name: str) -> tuple[Options, ...]:
    """The scorers of a YAML's block `name`: a mapping, or a list of them. Raises InputError with file and line: another
    form, an unknown engine, a key that its kind does not have, a wrong type."""
    blocks = setting.value if isinstance(setting.value, list) else [setting.value]
    if not blocks or not all(isinstance(one, dict) for one in blocks):
        found = "a list" if isinstance(setting.value, list) else repr(setting.value)
        raise InputError(f"{setting.where}: {name}: holds {found}; expected a mapping, or a list of mappings")
    return tuple(_read(block, setting.where, name) for block in blocks)


def _read(block: dict[str, Located], where: str, name: str) -> Options:
    engine = block.get("engine", Located("megatron", where))
    if not isinstance(engine.value, str) or engine.value not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise InputError(f"{engine.where}: engine: expected one of {known}, found {engine.value!r}")
    return parse_dataclass(block, KINDS[engine.value], block=f" in {name} of engine {engine.value}:")[0]


def problems(scorers: Sequence[Options], name: str) -> list[Problem]:
    """What is out of its range in a block `name`, each field with the block's name."""
    found = [(f"{name}.{key}", expected) for one in scorers for key, expected in one.problems()]
    return found + [(f"{name}.weight", "a number") for one in scorers if not math.isfinite(one.weight)]


def is_plain(scorers: Sequence[Options]) -> bool:
    """Whether they are the configuration's reward model alone, and its score is the reward."""
    one = scorers[0]
    return len(scorers) == 1 and isinstance(one, ScorerOptions) and not one.reward and one.weight == 1


def describe(scorers: Sequence[Options]) -> list[dict[str, Any]]:
    """What decides the rewards, files apart."""
    return [one.decisive() | {"weight": one.weight} for one in scorers]


def files_of(scorers: Sequence[Options], reward: str) -> dict[str, list[Path]]:
    """What they read beside the answers: reward models, and other files where there are some."""
    models = [path for one in scorers if isinstance(one, ScorerOptions) for path in one.files(reward)]
    others = [path for one in scorers if not isinstance(one, ScorerOptions) for path in one.files(reward)]
    return {"reward": models} | ({"scorers": others} if others else {})


def needs_reward(scorers: Sequence[Options]) -> bool:
    """Whether one of them is the configuration's reward model."""
    return any(isinstance(one, ScorerOptions) and not one.reward for one in scorers)
