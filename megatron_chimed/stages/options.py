"""The stages by name, and the options of each in the ``chimed:`` block. No torch: the plan reads them too."""

from dataclasses import dataclass, field


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
    steps and five at least."""

    margin: float = 0.0
    """What the better of two answers must be ahead, for each rank between them."""

    center_rewards_coefficient: float = field(default=0.0, metadata={"was": "centring"})
    """Weight of (better + worse)^2, which keeps rewards near 0."""


STAGES: dict[str, type] = {"pretrain": PretrainConfig, "sft": SftConfig, "reward": RewardConfig}
"""The stages by name, with the dataclass of their ``chimed:`` block. Its hooks are in the module of that name."""
