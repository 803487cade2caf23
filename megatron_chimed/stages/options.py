"""The stages by name, and the options of each in the ``chimed:`` block. No torch: the plan reads them too."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class PretrainConfig:
    """Continued pre-training on indexed corpora (paper, section on training: first stage)."""

    mask_loss_across_documents: bool = True
    """Do not train the last token of a document to predict the first token of the next one."""

    isolate_documents: bool = False
    """Attention never crosses a document boundary: positions restart and rows are packed with cu_seqlens."""


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on packed dialogues (paper, section on training: second stage)."""

    isolate_instances: bool = True
    """Attention never goes from one instance of a row to another. False is the paper's plain concatenation, where the
    boundary tokens alone say where instances meet."""


@dataclass(frozen=True)
class RewardConfig:
    """The reward model on ranked answers (paper, section on training: third stage)."""

    epochs: int | None = None
    """Times that the rows of --train-data-path are seen, in the place of --train-iters; the warm-up is then 3% of the
    steps and five at least, as in the paper."""

    margin: float = 0.0
    """What the better of two answers must be ahead, for each rank between them."""

    center_rewards_coefficient: float = field(default=0.0, metadata={"was": "centring"})
    """Weight of (better + worse)^2, which keeps rewards near 0."""


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimization on ranked answers, whose pairs are those that the rows were packed for
    (arXiv 2305.18290)."""

    epochs: int | None = None
    """As of the reward stage."""

    loss: Literal["pairs", "plackett_luce"] = "pairs"
    """Each pair by itself, or the order of all answers of a question at once (Plackett-Luce)."""

    beta: float = 0.1
    """Weight of the log-probability's change against the reference: the larger, the less the model moves away."""

    label_smoothing: float = 0.0
    """Share of pairs that are thought to be the wrong way round, from 0 to less than 0.5; for ``pairs``."""

    length_normalized: bool = False
    """Divide log-probabilities by the tokens of the answer."""

    sft_coefficient: float = 0.0
    """Weight of the better answer's negative log-likelihood per token, which keeps it likely (RPO)."""

    def problems(self) -> list[str]:
        """List values that make no sense, each with what was expected."""
        wrong = [] if self.beta > 0 else [f"beta is {self.beta}; expected more than 0"]
        if not 0 <= self.label_smoothing < 0.5:
            wrong.append(f"label_smoothing is {self.label_smoothing}; expected 0 or more, and less than 0.5")
        elif self.label_smoothing and self.loss != "pairs":
            wrong.append("label_smoothing is of the loss `pairs` alone; leave it out")
        if self.sft_coefficient < 0:
            wrong.append(f"sft_coefficient is {self.sft_coefficient}; expected 0 or more")
        return wrong


STAGES: dict[str, type] = {"pretrain": PretrainConfig, "sft": SftConfig, "reward": RewardConfig, "dpo": DpoConfig}
"""The stages by name, with the dataclass of their ``chimed:`` block. Its hooks are in the module of that name."""
