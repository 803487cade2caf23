"""What the steps of one round share: the configuration, the renderer, and where the round's files lie."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from megatron_chimed.checkpoints import split_adapter
from megatron_chimed.records import Prompt
from megatron_chimed.rejection.config import LoopConfig, TrainingShape, training_shape
from megatron_chimed.rejection.prompts import read_prompts
from megatron_chimed.rejection.scorers.scoring import Scoring
from megatron_chimed.rejection.store import count_stored
from megatron_chimed.text.renderer import Renderer


class RoundContext:
    """One round: its number and its folder."""

    def __init__(self, config: LoopConfig, renderer: Renderer, number: int):
        self.config, self.renderer, self.number = config, renderer, number
        self.folder = config.output / f"round-{number:02}"
        self.sets = ("selected", "control") if config.paths.control else ("selected",)
        self.models = self.sets if number else ("start",)
        self.pairs = config.training.method == "dpo"
        self.rendering = {"tokenizer": renderer.tokenizer.fingerprint, "template": renderer.template.fingerprint}

    def file(self, name: str) -> Path:
        """A file or folder of the round."""
        return self.folder / name

    def files(self, pattern: str, names: Iterable[str] | None = None) -> list[Path]:
        """One for each set of answers, or each of `names`."""
        return [self.file(pattern.format(name)) for name in names or self.sets]

    @cached_property
    def previous(self) -> "RoundContext":
        """The round before."""
        return RoundContext(self.config, self.renderer, self.number - 1)

    @property
    def checkpoint(self) -> Path:
        """The model that the round ends with; the start may be BASE+ADAPTER."""
        return self.file("train/selected") if self.number else Path(self.config.paths.start)

    @cached_property
    def scoring(self) -> Scoring:
        """Who gives answers their rewards."""
        return Scoring(self.config.scorer, self.config.paths.reward, self.renderer)

    @cached_property
    def shape(self) -> TrainingShape:
        """Tokens of a row and positions of the model."""
        return training_shape(self.config.paths.model, self.config.paths.stage)

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """The round's prompts by id, once they are drawn."""
        return {prompt.id: prompt for prompt in read_prompts([self.file("prompts.jsonl")])}


def folders_of(model: str | Path) -> list[Path]:
    """What tells a model from another: its folder; of BASE+ADAPTER that of the adapters, and of their base."""
    return [folder for folder in split_adapter(model) if folder is not None]


def as_paths(inputs: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    """Names of files by part, as paths."""
    return {name: list(map(Path, paths)) for name, paths in inputs.items()}


def describe_stored(stores: Iterable[Path]) -> str:
    """What stores hold, for a status."""
    count = sum(map(count_stored, stores))
    return f"{count} answers" if count else ""
