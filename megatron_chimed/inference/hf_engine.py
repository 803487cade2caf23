"""A Hugging Face folder through transformers, with the draws of our own engine.

The same prompt, settings and seed give the tokens that the Megatron checkpoint gives, as far as the arithmetic goes.
The folder's generation_config.json has no say.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megatron_chimed.convert.families import FAMILIES
from megatron_chimed.convert.transformers_model import load_model, to_device
from megatron_chimed.errors import InputError
from megatron_chimed.inference import likelihoods
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.prefixes import Row
from megatron_chimed.inference.request import Generated, Request
from megatron_chimed.inference.sampling import draw, uniforms

TOKENS_PER_PASS = 2048
"""Tokens in a row of several sequences, which has a mask of the square of them."""

CLASSES = {"lm": "AutoModelForCausalLM", "reward": "AutoModelForSequenceClassification"}


class HuggingFaceEngine(Engine):
    """On one GPU where there is one, else on the CPU. Samples are drawn one after the other."""

    kind = "hf"

    def __init__(self, folder: str | Path, dtype: str = "auto", *, head: str = "lm"):
        """dtype: float32 or bfloat16; "auto" is that of the weights. Raises InputError if it is no such model."""
        model = load_model(folder, CLASSES[head], dtype if dtype == "auto" else getattr(torch, dtype))
        if head == "reward" and model.config.num_labels != 1:
            raise InputError(f"{folder}: {model.config.num_labels} labels; expected a reward model, which has one")
        self.model, self.head, self.folder = to_device(model), head, str(folder)
        self.num_ids, self.max_positions = model.config.vocab_size, model.config.max_position_embeddings

    def generate(self, requests: Sequence[Request], stop: Sequence[int]) -> Iterator[list[tuple[int, Generated]]]:
        """As `Engine.generate`, each sample a batch of its own."""
        self._check_requests(requests)
        for index, request in enumerate(requests):
            tokens = list(self.stream(request, stop))
            yield [(index, Generated(tokens, bool(tokens) and tokens[-1] in stop))]

    @torch.inference_mode()
    def stream(self, request: Request, stop: Sequence[int]) -> Iterator[int]:
        """As `Engine.stream`."""
        device, params = self.model.device, request.params
        room = min(params.max_tokens, self.max_positions - len(request.prompt))
        uniform = uniforms(params.seed, room).to(device)
        settings = [
            torch.tensor([setting], device=device)
            for setting in (float(params.temperature), params.top_k, float(params.top_p))
        ]
        new, cache = torch.tensor([list(request.prompt)], device=device), None
        for step in range(room):
            output = self.model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = draw(output.logits[:, -1, : self.sampled_ids].float(), uniform[step : step + 1], *settings)
            yield token.item()
            if token.item() in stop:
                return
            new, cache = token[:, None], output.past_key_values

    @torch.inference_mode()
    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """As `Engine.loglikelihoods`; what pairs share at their beginning is read once, where the model's attention
        lets a row hold several sequences."""
        self._check_pairs(pairs)
        return likelihoods.loglikelihoods(pairs, TOKENS_PER_PASS if reads_rows(self.model) else 1, self._read)

    def _read(self, row: Row, places: list[int], wanted: list[int]) -> tuple[list[float], list[bool]]:
        """As `likelihoods.Read`."""
        device = self.model.device
        more = {}
        if len(row.sequences) > 1:
            mask = torch.zeros(1, 1, len(row.tokens), len(row.tokens), dtype=self.model.dtype)
            mask.masked_fill_(~sees(row), torch.finfo(self.model.dtype).min)
            more = {"attention_mask": mask.to(device), "position_ids": torch.tensor([row.positions], device=device)}
        kept = torch.tensor(places, device=device)
        logits = self.model(torch.tensor([row.tokens], device=device), logits_to_keep=kept, **more).logits[0].float()
        tokens = torch.tensor(wanted, device=device)
        log_p = logits.log_softmax(dim=-1).gather(-1, tokens[:, None])[:, 0]
        return log_p.double().tolist(), (logits.argmax(dim=-1) == tokens).tolist()

    @torch.inference_mode()
    def rewards(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """As `Engine.rewards`, padded on the right, in one batch.

        The reward is read at the last token of each sequence by its place: transformers looks for the last id that is
        no padding, and would miss an EOS that is also the padding.
        """
        self._check_sequences(sequences)
        device = self.model.device
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long, device=device)
        for row, sequence in zip(tokens, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(list(sequence), device=device)
        mask = torch.arange(tokens.size(1), device=device) < lengths[:, None]
        hidden = self.model.base_model(tokens, attention_mask=mask.long()).last_hidden_state  # [n, longest, hidden]
        last = hidden[torch.arange(len(sequences), device=device), lengths - 1]
        return self.model.score(last).float()[:, 0].tolist()

    def close(self) -> None:
        """Let go of the model."""
        self.model = None


def reads_rows(model: torch.nn.Module) -> bool:
    """Whether a mask of [1, 1, tokens, tokens] and positions are all that tells a model's tokens apart: attention over
    everything in all layers, computed by torch, of a family whose positions are rotations."""
    config, names = model.config, {family.name for family in FAMILIES}
    by_torch = config._attn_implementation in ("sdpa", "eager")
    return config.model_type in names and by_torch and getattr(config, "sliding_window", None) is None


def sees(row: Row) -> torch.Tensor:
    """Which token (first axis) of a row sees which [tokens, tokens]: the earlier of its own sequence, and itself."""
    earlier = torch.ones(len(row.tokens), len(row.tokens), dtype=torch.bool).tril()
    seen = torch.zeros_like(earlier)
    ends = [placed.own for placed in row.sequences[1:]] + [len(row.tokens)]
    for placed, end in zip(row.sequences, ends, strict=True):
        own = slice(placed.own, end)
        seen[own, placed.first : placed.first + placed.shared] = True
        seen[own, own] = earlier[own, own]
    return seen
