"""The loss of a large vocabulary in chunks of tokens: never more logits at a time than those of one chunk.

Megatron's GPTModel makes the logits of all tokens, [s, b, vocabulary / ranks], and keeps their softmax in float32 for
the backward pass. Here output layer and cross-entropy go over one chunk after the other, and once more in the backward
pass, where the gradient of each token's loss is known: a product of hidden states and output weights more to the three
of a step. Nothing else is another computation, and losses and gradients are the same but for the order of sums.

megatron-core 0.19.2 has no such loss: both values of --cross-entropy-fusion-impl, native and te, take the logits of all
tokens; with them a chunk's loss is computed by theirs. Source of the idea: arXiv 2411.09009, which makes it one kernel.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region

Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(hidden states [n, b, H], output weight [V / ranks, H], labels [b, n]) -> losses [b, n], logits [n, b, V / ranks]."""


def chunk_loss(model: GPTModel, tokens: int) -> None:
    """Let a model that is given labels compute its loss over about so many tokens at a time, one position at least."""

    def ask_for_chunks(module, args, kwargs):
        if kwargs.get("labels") is not None:
            kwargs["output_processor"] = functools.partial(loss_in_chunks, tokens)
        return args, kwargs

    model.register_forward_pre_hook(ask_for_chunks, with_kwargs=True)


def loss_in_chunks(
    tokens: int,
    *,
    hidden_states: torch.Tensor,
    output_layer: torch.nn.Module,
    output_weight: torch.Tensor | None,
    labels: torch.Tensor,
    compute_language_model_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scale_logits: Callable[[torch.Tensor], torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    """Losses of all tokens [b, s], as Megatron's output processor.

    hidden_states [s, b, H], with sequence parallelism this rank's [s / ranks, b, H]; output_weight: the embedding's
    where they are tied; labels [b, s].
    """
    # Hidden states and their gradient are communicated once, for all chunks: of a sequence that is split over the ranks
    # a chunk lies on one of them.
    split, group = output_layer.sequence_parallel, output_layer.tp_group
    enter = gather_from_sequence_parallel_region if split else copy_to_tensor_model_parallel_region
    hidden = enter(hidden_states, group=group)

    def head(hidden, weight, labels):
        logits, _ = output_layer(hidden, weight=weight)
        return compute_language_model_loss(labels, scale_logits(logits)), logits

    positions = max(1, tokens // hidden.size(1))
    weight = output_layer.weight if output_weight is None else output_weight
    return _LossInChunks.apply(hidden, weight, labels, positions, output_layer, head)


@contextlib.contextmanager
def _alone(layer: torch.nn.Module, again: bool) -> Iterator[None]:
    """The output layer without communication of its input and of its gradient; again: its hooks have seen this call."""
    state = {"sequence_parallel": False, "allreduce_dgrad": False, "disable_grad_reduce": True, "computes_again": again}
    before = {name: getattr(layer, name, False) for name in state}
    vars(layer).update(state)
    try:
        yield
    finally:
        vars(layer).update(before)


class _LossInChunks(torch.autograd.Function):
    """hidden [s, b, H] and weight [V / ranks, H] -> losses [b, s]; keeps both, and no logits."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, positions: int, layer: torch.nn.Module, head: Head):
        ctx.save_for_backward(hidden, weight, labels)
        ctx.positions, ctx.layer, ctx.head = positions, layer, head
        chunks = zip(hidden.split(positions), labels.split(positions, dim=1), strict=True)
        with _alone(layer, again=False):
            return torch.cat([head(states, weight, targets)[0] for states, targets in chunks], dim=1)

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight, labels = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        of_weight = _WeightGradient(weight, fused=ctx.layer.gradient_accumulation_fusion)
        pieces = (hidden.split(ctx.positions), of_hidden.split(ctx.positions))
        pieces += (labels.split(ctx.positions, dim=1), gradient.split(ctx.positions, dim=1))
        with _alone(ctx.layer, again=True):
            for states, result, targets, upstream in zip(*pieces, strict=True):
                result.copy_(of_weight.add(ctx.head, states, targets, upstream))
        return of_hidden, of_weight.result(), None, None, None, None


class _WeightGradient:
    """The sum of the chunks' gradients of the output weight.

    fused: the layer's own backward pass adds them to Megatron's buffer, and what it returns stands for them. Else the
    sum is in float32 whatever the weight is in, so that it is rounded once, as that of whole logits is.
    """

    def __init__(self, weight: torch.Tensor, fused: bool):
        self.weight, self.fused, self.sum = weight, fused and weight.requires_grad, None
        if weight.requires_grad and not fused:
            self.sum = torch.zeros_like(weight, dtype=torch.float32)

    def add(self, head: Head, states: torch.Tensor, labels: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
        """Compute a chunk again, add its gradient, and return that of its hidden states [n, b, H]."""
        states, weight = states.detach().requires_grad_(), self.weight if self.fused else self.weight.detach()
        with torch.enable_grad():
            losses, logits = head(states, weight, labels)
        inputs = (states, weight if self.fused else logits)
        of_states, other = torch.autograd.grad(losses, inputs, upstream, allow_unused=self.fused)
        if self.fused:
            self.sum = other
        elif self.sum is not None:
            left, right = other.flatten(0, 1).t(), states.detach().flatten(0, 1)
            if left.dtype == self.sum.dtype:
                self.sum.addmm_(left, right)
            else:
                self.sum += left @ right
        return of_states

    def result(self) -> torch.Tensor | None:
        """The gradient in the weight's type; None for a frozen weight, or where the layer's own backward gives none."""
        return None if self.sum is None else self.sum.to(self.weight.dtype)
