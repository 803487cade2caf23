"""RMSNorm for the layer specification without Transformer Engine.

Megatron's own torch norm refuses sequence parallelism; this one allows it by marking its weight, so that Megatron sums
the weight's gradient over the tensor-parallel ranks. apex's fused kernel serves it on a GPU where apex is installed.
"""

import torch
from megatron.core.transformer import TransformerConfig

try:
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine
except ImportError:
    fused_rms_norm_affine = None

BACKEND = "torch" if fused_rms_norm_affine is None else "apex"


class RMSNorm(torch.nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, 2019, eq. 4).

    Input and output: [..., hidden_size].
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size] -> the same shape and dtype."""
        if fused_rms_norm_affine is not None and x.is_cuda:
            return fused_rms_norm_affine(x, self.weight, self.weight.shape, self.eps)
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
