"""Losses as (sum, count, report): summed over what this rank saw, normalised once, globally, by the trainer.

A mean of per-rank or per-micro-batch means would weigh a token by how many others it came with.
"""

import torch


def masked_nll(
    loss_mask: torch.Tensor, nll: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Negative log-likelihood of the unmasked target tokens, in nats.

    loss_mask and nll: the same number of elements, any shape; nll per token from the model. Returns (sum, number of
    target tokens as int64, {"lm loss": [sum, count]}), as Megatron's trainer takes it with --calculate-per-token-loss.

    >>> masked_nll(torch.tensor([[1., 0., 1.]]), torch.tensor([[2., 9., 4.]]))[:2]
    (tensor(6.), tensor(2))
    """
    mask = loss_mask.reshape(-1).float()
    total = (nll.reshape(-1).float() * mask).sum()
    count = mask.count_nonzero()
    return total, count, {"lm loss": torch.stack([total.detach(), count.to(total.dtype)])}
