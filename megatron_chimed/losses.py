"""Losses as (sum, count, report): summed over what this rank saw, normalised once, globally, by the trainer.

A mean of per-rank or per-micro-batch means would weigh a token by how many others it came with.
"""

from collections.abc import Sequence

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


def response_metrics(
    labels: torch.Tensor,
    loss_mask: torch.Tensor,
    source: torch.Tensor,
    predicted: torch.Tensor | None,
    sources: Sequence[str],
    nll: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Figures of a fine-tuning batch as {name: [sum, count]}, float32; all tensors have as many elements as `labels`.

    "response accuracy": target tokens that are the most likely ones (left out without `predicted`); "fill": positions
    that are no padding (source -1); "targets": positions whose label is learnt; "lm loss SOURCE": NLL of the target
    tokens of each of `sources`, which `source` numbers.
    """
    mask, source, nll = loss_mask.reshape(-1).float(), source.reshape(-1), nll.detach().reshape(-1).float()
    positions = mask.new_tensor(float(mask.numel()))
    report = {
        "fill": torch.stack([(source >= 0).sum().float(), positions]),
        "targets": torch.stack([mask.sum(), positions]),
    }
    if predicted is not None:
        right = (predicted.reshape(-1) == labels.reshape(-1)).float() * mask
        report["response accuracy"] = torch.stack([right.sum(), mask.sum()])
    for number, name in enumerate(sources):
        here = mask * (source == number)
        report[f"lm loss {name}"] = torch.stack([(nll * here).sum(), here.sum()])
    return report
