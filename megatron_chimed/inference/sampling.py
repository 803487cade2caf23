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
    """A token for each row, by inversion of its distribution function over the ids in their order: [b] int64.

    logits: float [b, ids], of the ids that may be drawn and no others; uniform: [b], in [0, 1); temperature: [b], 0 for
    the most likely token (the lowest id among equals); top_k and top_p: [b], as in `least_probability`. A row's token
    does not depend on other rows.
    """
    greedy = logits.argmax(dim=-1)
    if not temperature.any():
        return greedy
    scaled = logits.double() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    probability = scaled.softmax(dim=-1)
    if top_k.any() or (top_p < 1).any():
        least = least_probability(probability, top_k, top_p)
        probability = probability.masked_fill(probability < least[:, None], 0.0)
    return torch.where(temperature > 0, invert(probability, uniform), greedy)


def least_probability(
    probability: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, look_at: int = 64
) -> torch.Tensor:
    """The probability below which nothing is drawn, [b], from probability [b, ids].

    top_k: [b] int, keep so many most likely ids, 0 for all. top_p: [b], of these, keep the fewest most likely ids that
    together hold this share of them, 1 for all; the id that reaches it is kept, so there always is one. Ids that are as
    likely as the last one are kept as well. The `look_at` most likely ids are sorted, and more only if a row needs it.
    """
    number = min(look_at, probability.size(-1))
    ranked = probability.topk(number).values
    cumulated = ranked.cumsum(dim=-1)
    place = torch.arange(number, device=ranked.device)
    among = (top_k[:, None] == 0) | (place < top_k[:, None])
    last = top_k.clamp(1, number)[:, None] - 1
    total = torch.where(top_k[:, None] > 0, cumulated.gather(-1, last), 1.0)
    reached = cumulated - ranked >= top_p[:, None] * total  # by the ids before this one
    kept = among & ((place == 0) | (top_p[:, None] == 1) | ~reached)
    count = kept.sum(dim=-1)
    all_ids = (top_k == 0) & (top_p == 1)
    if number < probability.size(-1) and bool((~all_ids & ((count == number) | (top_k > number))).any()):
        return least_probability(probability, top_k, top_p, 8 * look_at)
    return ranked.gather(-1, count[:, None] - 1)[:, 0].masked_fill(all_ids, 0.0)


def invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """For weights [b, ids], the first id of each row up to which the weights exceed uniform * their sum: never one of
    weight 0. [b] int64."""
    cumulated = weights.cumsum(dim=-1)
    total = cumulated[:, -1]
    below = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))  # whatever rounding does
    return torch.searchsorted(cumulated, below[:, None], right=True)[:, 0]
