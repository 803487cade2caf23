"""Options of a training job, in the ``chimed:`` block, whatever its stage."""

from dataclasses import dataclass

from megatron_chimed.errors import InputError


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

    def check(self) -> None:
        """Raise InputError for a number that makes no sense."""
        if self.keep_checkpoints < 0:
            raise InputError(f"keep_checkpoints is {self.keep_checkpoints}; expected 0 (all) or more")
        if self.loss_limit and not self.loss_limit > 1:
            raise InputError(f"loss_limit is {self.loss_limit}; expected 0 (off) or a factor above 1")
        if self.loss_limit_iterations < 1:
            raise InputError(f"loss_limit_iterations is {self.loss_limit_iterations}; expected 1 or more")
