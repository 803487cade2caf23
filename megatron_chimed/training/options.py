"""Options of a training job, in the ``chimed:`` block, whatever its stage."""

from dataclasses import dataclass, field
from typing import Literal

from megatron_chimed.errors import InputError


@dataclass(frozen=True)
class Replay:
    """Earlier data mixed into the training data, so that what they taught is kept."""

    data: str
    """A corpus's prefix or a packed folder."""

    share: float
    """The share of the training samples that is drawn from it, more than 0 and less than 1."""


@dataclass(frozen=True)
class JobOptions:
    """How a training guards itself, whatever the stage."""

    keep_checkpoints: int = 0
    """The newest checkpoints that are kept in --save; 0 keeps all. Multiples of --save-retain-interval stay."""

    allow_other_tokenizer: bool = False
    """Train on data that were tokenized with another tokenizer than --tokenizer-model; also --allow-other-tokenizer."""

    loss_limit: float = 0.0
    """Stop when the loss is above this many times the median of its last 100 values; 0 never does. A loss or a gradient
    that is not a number always stops the run."""

    loss_limit_iterations: int = 5
    """The iterations on end for which it must be above."""

    replay: Replay | None = None
    """Earlier data that are mixed in: ``{data: PATH, share: 0.1}``; in pre-training and fine-tuning."""

    valid: dict[str, str] = field(default_factory=dict)
    """Validation sets by name, ``{general: PATH, medical: PATH}``, each a corpus's prefix or a packed folder; also
    --valid NAME=PATH .... The loss of each is logged as "lm loss NAME" before the first step, at every --eval-interval
    and at the end; forgetting.json in --save has them before and after."""

    valid_rows: int = 200
    """The most rows that are read of a set of ``valid``: always the same ones, one at a time."""

    max_rise: float = 0.0
    """What the loss of a set of ``valid`` may rise above that before the first step, in nats per token; 0: any."""

    on_rise: Literal["warn", "stop"] = "warn"
    """What to do when one rises by more: say so, or save, say so and end with exit code 1."""

    def check(self, learns_text: bool = True) -> None:
        """Raise InputError for a value that makes no sense. learns_text: of the stage."""
        if self.keep_checkpoints < 0:
            raise InputError(f"keep_checkpoints is {self.keep_checkpoints}; expected 0 (all) or more")
        if self.loss_limit and not self.loss_limit > 1:
            raise InputError(f"loss_limit is {self.loss_limit}; expected 0 (off) or a factor above 1")
        if self.loss_limit_iterations < 1:
            raise InputError(f"loss_limit_iterations is {self.loss_limit_iterations}; expected 1 or more")
        if self.valid_rows < 1:
            raise InputError(f"valid_rows is {self.valid_rows}; expected 1 or more")
        if self.max_rise < 0 or (self.max_rise and not self.valid):
            raise InputError(f"max_rise is {self.max_rise}; expected 0 (off), or more and sets by name in valid")
        if self.replay and not 0 < self.replay.share < 1:
            raise InputError(f"replay: share is {self.replay.share}; expected more than 0 and less than 1")
        if (self.valid or self.replay) and not learns_text:
            raise InputError("valid and replay are for pre-training and fine-tuning; leave them out in this stage")

    @property
    def more_data(self) -> list[str]:
        """Prefixes and folders that are read beside those of Megatron's arguments."""
        return [*self.valid.values(), *([self.replay.data] if self.replay else [])]
