"""Keys and values of a batch whose rows have lengths of their own, kept where Megatron's layers attend.

For the time of a generation the core attention of each layer is replaced by one that remembers. Megatron's own
StaticInferenceContext is not used: it keeps keys unrotated and rotates all of them again at every token, and holds all
rows at one position, so that prompts of different lengths need padding in front.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel

from megatron_chimed.inference.prefixes import Placed


class Cache:
    """What one batch has computed so far. Rows are numbered from 0; `keep` renumbers them."""

    def __init__(self, num_rows: int, capacity: int, device: torch.device):
        """capacity: tokens that a row can hold."""
        self.num_rows, self.capacity = num_rows, capacity
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        """Tokens that each row holds, int64 [rows]; grows with `prefill` and `extend`."""

        self._layers: list[_RememberingAttention] = []
        self._prompts: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._mask: torch.Tensor | None = None
        self._longest = 0

    @contextlib.contextmanager
    def attached(self, model: GPTModel) -> Iterator[None]:
        """Let the model's layers keep their keys and values here."""
        attentions = [layer.self_attention for layer in model.decoder.layers]
        replaced = [attention.core_attention for attention in attentions]
        self._layers = [_RememberingAttention(self, core, model.config.kv_channels) for core in replaced]
        try:
            for attention, layer in zip(attentions, self._layers, strict=True):
                attention.core_attention = layer
            yield
        finally:
            for attention, core in zip(attentions, replaced, strict=True):
                attention.core_attention = core

    @contextlib.contextmanager
    def prefill(self, given: Sequence[tuple[list[int], Placed]], prompts: Sequence[Sequence[int]]) -> Iterator[None]:
        """A forward pass over a packed row of prompts. given: numbers of rows of this cache, and where in the packed
        row the prompt stands that each of them gets."""
        to, tokens, places = [], [], []
        for rows, placed in given:
            of_prompt = placed.places(len(prompts[placed.number]))
            for row in rows:
                to += [row] * len(of_prompt)
                tokens += range(len(of_prompt))
                places += of_prompt
        device = self.lengths.device
        self._prompts = tuple(torch.tensor(numbers, device=device) for numbers in (to, tokens, places))
        yield
        self._prompts = None
        for rows, placed in given:
            self.lengths[rows] = len(prompts[placed.number])
        self._longest = max(self._longest, 1 + max(tokens))

    @contextlib.contextmanager
    def extend(self) -> Iterator[None]:
        """A forward pass over one more token of every row."""
        self._mask = None
        self._longest += 1
        if not bool((self.lengths == self._longest - 1).all()):
            places = torch.arange(self._longest, device=self.lengths.device)
            self._mask = (places <= self.lengths[:, None])[:, None, None]  # [b, 1, 1, longest]
        yield
        self.lengths += 1

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these rows, [rows kept] numbers, in this order; only those that change their number are copied."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        self.lengths = self.lengths[rows]
        self._longest = int(self.lengths.max())
        for layer in self._layers:
            layer.move(rows[moved], moved, self._longest)


class _RememberingAttention(torch.nn.Module):
    """A core attention, with Megatron's signature, over the cache of one layer."""

    def __init__(self, cache: Cache, core: torch.nn.Module, head_size: int):
        """core: what it stands for, which reads the prompts."""
        super().__init__()
        self.cache, self.core, self.scale = cache, core, 1 / math.sqrt(head_size)
        self.keys: torch.Tensor | None = None  # [rows, groups, capacity, d] of this rank, rotated; values likewise
        self.values: torch.Tensor | None = None

    def forward(self, query, key, value, attention_mask, **more) -> torch.Tensor:
        """query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d]; of packed rows without b."""
        if self.keys is None:
            shape = (self.cache.num_rows, key.shape[-2], self.cache.capacity, key.shape[-1])
            # Zeros: what is masked has weight 0 in the sum, and 0 times what memory happens to hold may be NaN.
            self.keys, self.values = key.new_zeros(shape), value.new_zeros(shape)
        if self.cache._prompts is None:
            return self._extend(query[0], key[0], value[0])
        rows, tokens, places = self.cache._prompts
        self.keys[rows, :, tokens], self.values[rows, :, tokens] = key[places], value[places]
        return self.core(query, key, value, attention_mask, **more)

    def _extend(self, query, key, value) -> torch.Tensor:
        """query [b, heads, d], key and value [b, groups, d] -> [1, b, heads * d]."""
        cache, (rows, groups, size) = self.cache, key.shape
        if cache._mask is None:  # all rows are of one length
            self.keys[:rows, :, cache._longest - 1], self.values[:rows, :, cache._longest - 1] = key, value
        else:
            numbers = torch.arange(rows, device=key.device)
            self.keys[numbers, :, cache.lengths], self.values[numbers, :, cache.lengths] = key, value
        # The query heads of a group stand as if they were several tokens: keys need no copy for each head.
        query = query.view(rows, groups, -1, size)
        keys, values = (memory[:rows, :, : cache._longest] for memory in (self.keys, self.values))
        context = F.scaled_dot_product_attention(query, keys, values, attn_mask=cache._mask, scale=self.scale)
        return context.reshape(1, rows, -1)

    def move(self, rows: torch.Tensor, to: torch.Tensor, length: int) -> None:
        """Copy the first `length` tokens of rows, [n] numbers, to others, [n]."""
        for memory in (self.keys, self.values):
            memory[to, :, :length] = memory[rows, :, :length]
