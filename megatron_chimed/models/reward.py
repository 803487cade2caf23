"""The reward model: the language model's body with a scalar head in the place of its output layer.

Source: arXiv 2311.06025, section on the reward model; the head has no bias, as Hugging Face's `score` has none.
"""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.models.options import ModelOptions

HEAD = "reward_head.weight"
"""Name of the head's weight in a checkpoint."""


class RewardHead(torch.nn.Module):
    """Hidden states [s, b, H] -> rewards [b, s], both whole on every tensor-parallel rank; float32 in any model.

    A new head is zero: every answer starts with the reward 0, the loss at log 2, and no random number depends on how
    the model is spread over ranks. weight: [1, H].
    """

    def __init__(self, hidden_size: int, sequence_parallel: bool, group: torch.distributed.ProcessGroup):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, hidden_size))
        # Each rank sees its part of the sequence: Megatron then adds up the ranks' gradients of this weight.
        self.weight.sequence_parallel = sequence_parallel
        self.sequence_parallel, self.group = sequence_parallel, group

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [s, b, H], with sequence parallelism this rank's [s / ranks, b, H]."""
        rewards = torch.nn.functional.linear(hidden.float(), self.weight)
        if self.sequence_parallel:
            # What follows is computed on every rank, so that each takes the gradient of its own part alone.
            rewards = gather_from_sequence_parallel_region(rewards, tensor_parallel_output_grad=False, group=self.group)
        return rewards.squeeze(-1).transpose(0, 1).contiguous()

    def _apply(self, fn, recurse=True):
        """Follow a model to its device, and to no other type than float32."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


class RewardModel(GPTModel):
    """forward(tokens [b, s], position_ids [b, s], None, packed_seq_params=...) -> the reward at each position [b, s],
    which sees the tokens up to there; before the last pipeline stage the hidden states."""

    def __init__(self, config, *args: Any, pg_collection: ProcessGroupCollection, **kwargs: Any):
        super().__init__(config, *args, pg_collection=pg_collection, **kwargs)
        if self.post_process:
            del self.output_layer
            self.reward_head = RewardHead(config.hidden_size, config.sequence_parallel, pg_collection.tp)
        self.init_missing = False  # while a language model's weights are loaded, which know no head

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As a language model's, with the head in the place of the output layer."""
        last, self.post_process = self.post_process, False  # upstream looks for the output layer on a last stage
        try:
            weights = super().sharded_state_dict(*args, **kwargs)
        finally:
            self.post_process = last
        return {name: weight for name, weight in weights.items() if not (self.init_missing and name.endswith(HEAD))}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> Any:
        """Load all weights; a new head stays as it is."""
        if self.init_missing and self.post_process:
            state_dict = state_dict | {HEAD: self.reward_head.weight.detach()}
        return super().load_state_dict(state_dict, strict=strict)

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Hidden states [S, B, H] to what `reward_head` makes of them, on the last pipeline stage."""
        return self.reward_head(hidden_states) if self.post_process else hidden_states


def build_reward(options: ModelOptions, config: Any, **placement: Any) -> RewardModel:
    """Build this rank's part of the reward model; see `build_gpt`. The output layer is not shared with the embedding,
    whatever the language model did: there is none."""
    shared, config.share_embeddings_and_output_weights = config.share_embeddings_and_output_weights, False
    try:
        return build_gpt(options, config, model_class=RewardModel, **placement)
    finally:
        config.share_embeddings_and_output_weights = shared
