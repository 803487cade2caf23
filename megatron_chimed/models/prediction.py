"""The most likely next token at each position, from logits that are spread over the tensor-parallel ranks."""

import torch
from megatron.core.utils import unwrap_model


@torch.no_grad()
def vocabulary_argmax(logits: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """logits [s, b, vocabulary / ranks] of this rank -> ids [b, s], the same on all ranks."""
    values, ids = logits.max(dim=-1)
    ranks, width = group.size(), logits.size(-1)
    ids = ids + group.rank() * width
    if ranks > 1:
        # Ids travel as float64 beside the values: one message, and exact up to 2^53.
        mine = torch.stack([values.double(), ids.double()])
        all_of_them = [torch.empty_like(mine) for _ in range(ranks)]
        torch.distributed.all_gather(all_of_them, mine, group=group)
        every = torch.stack(all_of_them)  # [ranks, 2, s, b]
        best = every[:, 0].max(dim=0).indices
        ids = every[:, 1].gather(0, best[None])[0].long()
    return ids.transpose(0, 1).contiguous()


def record_argmax(model: torch.nn.Module, group: torch.distributed.ProcessGroup) -> None:
    """Let a model remember, at each forward pass, what it holds most likely: the trainer gets losses, not logits."""

    def forget(module, inputs):
        model.predicted = []

    def remember(module, inputs, outputs):
        if not getattr(module, "computes_again", False):  # the backward pass of a loss in chunks
            model.predicted.append(vocabulary_argmax(outputs[0].detach(), group))

    model.register_forward_pre_hook(forget)
    model.output_layer.register_forward_hook(remember)


def last_predictions(model: torch.nn.Module) -> torch.Tensor | None:
    """Ids [b, s] of the last forward pass, whose output layer took the sequence in one piece or in several; None where
    the model has no output layer. Wrapped models are unwrapped."""
    predicted = getattr(unwrap_model(model), "predicted", None)
    return None if predicted is None else torch.cat(predicted, dim=1)
