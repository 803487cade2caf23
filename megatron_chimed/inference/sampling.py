"""From logits to tokens: temperature, top-k, top-p, by one uniform number per token. Pure functions.

The uniform number of step t of a sample depends on its seed and on t, on nothing else: not on a generator's state, the
device, or the batch.
"""

import hashlib

import torch


def uniforms(seed: int, count: int) -> torch.Tensor:
    """float64 [count] in [0, 1), on the CPU: 53 bits for each step, from SHAKE-256 of the seed.

    uniforms(s, n) begins with uniforms(s, m) for all m < n. A generator of torch would take the seed modulo 2^32.
    """
    digest = bytearray(hashlib.shake_256(seed.to_bytes(8, "little")).digest(8 * max(1, count)))
    words = torch.frombuffer(digest, dtype=torch.int64)[:count]
    return ((words >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def draw(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
) -> torch.Tensor:
    """A token for each row, by inversion of its distribution function: [b] int64.

    logits: float [b, ids], of ids that may be drawn only; uniform [b], in [0, 1); temperature [b], 0 for the most
    likely token (the lowest id among equals); top_k [b] int, 0 for all; top_p [b], 1 for all. Top-k comes before top-p,
    which counts from the probabilities that top-k leaves; the token that reaches top_p is kept, so one always is.
    """
    greedy = logits.argmax(dim=-1)
    if not temperature.any():
        return greedy
    scaled = logits.double() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    weight = scaled.softmax(dim=-1)
    if top_k.any() or (top_p < 1).any():
        weight = weight.masked_fill(~kept(weight, top_k, top_p), 0.0)
    return torch.where(temperature > 0, invert(weight.cumsum(dim=-1), uniform), greedy)


def kept(probability: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Which ids [b, ids] may be drawn, as `draw` says; of equal probabilities the lower ids come first."""
    ranked, order = probability.sort(dim=-1, descending=True, stable=True)
    place = torch.arange(ranked.size(-1), device=ranked.device)
    outside = (top_k[:, None] > 0) & (place >= top_k[:, None])
    ranked = ranked.masked_fill(outside, 0.0)
    before = ranked.cumsum(dim=-1) - ranked
    outside |= (top_p[:, None] < 1) & (before >= top_p[:, None] * ranked.sum(dim=-1, keepdim=True)) & (place > 0)
    return torch.empty_like(outside).scatter_(-1, order, ~outside)


def invert(cumulated: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first place of each row whose cumulated weight exceeds uniform * total: never one of weight 0. [b] int64."""
    total = cumulated[:, -1]
    below = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))  # whatever rounding does
    return torch.searchsorted(cumulated, below[:, None], right=True)[:, 0]
