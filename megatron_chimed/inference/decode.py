"""Samples from a Megatron model of this process, by its own layers and a cache of their keys and values.

Prompts are read as packed rows, in which what several have in common at their beginning stands once: a prompt with
many samples, or the examples in front of many questions. Rows that have ended leave the batch.

The model may be in training: its mode and all random states are as before, as nothing is drawn from them.
"""

import contextlib
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.utils import unwrap_model

from megatron_chimed.inference.cache import Cache
from megatron_chimed.inference.prefixes import Row, rows_of
from megatron_chimed.inference.request import Generated, Request
from megatron_chimed.inference.sampling import draw, uniforms
from megatron_chimed.inference.step import Decoder, decoder_of
from megatron_chimed.models.branches import describe_row
from megatron_chimed.models.rotary import angles

TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384}
"""Tokens in a forward pass over whole sequences (one sequence may have more). On a CPU more of them leave its caches:
16,000 take twice as long for each."""


def generate(
    model: torch.nn.Module, requests: Sequence[Request], stop: Sequence[int], *, num_ids: int, max_positions: int
) -> list[Generated]:
    """The samples of one batch, in the order of the requests. All tensor-parallel ranks call it and get the same.

    model: a GPTModel, wrapped or not, without pipeline stages and sequence parallelism. stop: ids that end a sample.
    num_ids: ids that may be drawn, without the padding of the vocabulary. max_positions: the end of the context; every
    prompt leaves room for a token there.
    """
    batch = _Batch(requests, max_positions, next(model.parameters()).device)
    for _ in _steps(model, batch, stop, num_ids):
        pass
    return batch.results()


def stream(
    model: torch.nn.Module, request: Request, stop: Sequence[int], *, num_ids: int, max_positions: int
) -> Generator[int, None, None]:
    """The tokens of one sample, each when it is drawn; the arguments, and the tokens, are those of `generate`.

    Between two tokens the model is prepared for the next: nothing else may use it until this is exhausted or closed.
    """
    batch = _Batch([request], max_positions, next(model.parameters()).device)
    for tokens in _steps(model, batch, stop, num_ids):
        yield tokens.item()


@torch.no_grad()
def _steps(
    model: torch.nn.Module, batch: "_Batch", stop: Sequence[int], num_ids: int
) -> Generator[torch.Tensor, None, None]:
    """Compute a batch to its end; yields the new tokens, int64 [rows], of the rows that have gone on so far."""
    model = unwrap_model(model)
    if model.config.sequence_parallel or not (model.pre_process and model.post_process):
        raise ValueError("generation needs a model without sequence parallelism and pipeline stages")
    cache = Cache(len(batch.prompts), batch.capacity, batch.device)
    stop = torch.tensor(list(stop), dtype=torch.long, device=batch.device)
    with evaluating(model), cache.attached(model):
        decoder = decoder_of(model)
        logits = _prefill(model, cache, batch)
        while True:
            tokens = draw(logits[:, :num_ids].float(), *batch.sampling())
            going_on = batch.add(tokens, stop)
            yield tokens
            if len(going_on) == 0:
                return
            if len(going_on) < len(tokens):
                tokens = tokens[going_on]
                cache.keep(going_on)
            logits = _step(model, decoder, cache, tokens)


@contextlib.contextmanager
def evaluating(model: GPTModel) -> Iterator[None]:
    """The model without dropout; each module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    # Where backend/cpu.py is installed, every torch function passes through Python to map devices: half of the time
    # of a small model. Nothing here names a device.
    with torch._C.DisableTorchFunction():
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


class _Batch:
    """The samples of a batch: settings and progress of the rows that go on, and all tokens so far."""

    def __init__(self, requests: Sequence[Request], max_positions: int, device: torch.device):
        self.device, self.prompts = device, [tuple(request.prompt) for request in requests]
        lengths = [len(prompt) for prompt in self.prompts]
        room = [min(r.params.max_tokens, max_positions - n) for r, n in zip(requests, lengths, strict=True)]
        self.capacity = max(n + more for n, more in zip(lengths, room, strict=True))
        self.step = 0
        self.tokens = torch.zeros(len(requests), max(room), dtype=torch.long, device=device)
        self.counts, self.stopped = [0] * len(requests), [False] * len(requests)
        uniform = torch.stack([uniforms(request.params.seed, max(room)) for request in requests])
        self.rows = {  # each a tensor whose first axis is that of the rows that go on
            "index": torch.arange(len(requests)),
            "room": torch.tensor(room),
            "uniform": uniform,
            "temperature": torch.tensor([r.params.temperature for r in requests], dtype=torch.float64),
            "top_k": torch.tensor([r.params.top_k for r in requests]),
            "top_p": torch.tensor([r.params.top_p for r in requests], dtype=torch.float64),
        }
        self.rows = {name: tensor.to(device) for name, tensor in self.rows.items()}

    def sampling(self) -> tuple[torch.Tensor, ...]:
        """What `sampling.draw` takes besides logits: uniform, temperature, top_k, top_p, [b] each."""
        rows = self.rows
        return rows["uniform"][:, self.step], rows["temperature"], rows["top_k"], rows["top_p"]

    def add(self, tokens: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
        """Take one token for each row [b]; the rows that go on, as numbers, each at its old place where it can be."""
        index = self.rows["index"]
        self.tokens[index, self.step] = tokens
        self.step += 1
        stopped = torch.isin(tokens, stop)
        ended = stopped | (self.rows["room"] <= self.step)
        if not bool(ended.any()):
            return torch.arange(len(tokens), device=self.device)
        for row, by_stop in zip(index[ended].tolist(), stopped[ended].tolist(), strict=True):
            self.counts[row], self.stopped[row] = self.step, by_stop
        staying = (~ended).nonzero()[:, 0]
        order = torch.arange(len(staying), device=self.device)
        order[ended[: len(staying)]] = staying[staying >= len(staying)]
        self.rows = {name: tensor[order] for name, tensor in self.rows.items()}
        return order

    def results(self) -> list[Generated]:
        """All samples, in the order of the requests."""
        rows = zip(self.tokens.tolist(), self.counts, self.stopped, strict=True)
        return [Generated(tokens[:count], stopped) for tokens, count, stopped in rows]


def _prefill(model: GPTModel, cache: Cache, batch: _Batch) -> torch.Tensor:
    """Compute all prompts, each once -> logits [b, padded vocabulary] of each row's first new token."""
    rows_with = defaultdict(list)
    for row, prompt in enumerate(batch.prompts):
        rows_with[prompt].append(row)
    prompts = list(rows_with)
    last, order = [], []
    for packed in rows_of(prompts, TOKENS_PER_PASS[batch.device.type]):
        with cache.prefill([(rows_with[prompts[one.number]], one) for one in packed.sequences], prompts):
            states = row_states(model, packed)
        last.append(states[[one.place(len(prompts[one.number]) - 1) for one in packed.sequences]])
        order += [one.number for one in packed.sequences]
    numbers = {prompts[number]: place for place, number in enumerate(order)}
    return logits_of(model, torch.cat(last))[[numbers[prompt] for prompt in batch.prompts]]


def _step(model: GPTModel, decoder: Decoder, cache: Cache, tokens: torch.Tensor) -> torch.Tensor:
    """tokens [b], one for each row -> logits [b, padded vocabulary] of the next."""
    with cache.extend():
        table = angles(model, cache.capacity)[:, 0, 0][cache.lengths]  # GPTModel.forward would count from 0
        embedded = model.embedding(tokens[:, None], cache.lengths[:, None])
        return logits_of(model, decoder(embedded, table)[0])


def row_states(model: GPTModel, row: Row) -> torch.Tensor:
    """The normalised states behind the last layer [tokens, hidden] of a packed row."""
    device = next(model.parameters()).device
    tokens, positions = (torch.tensor([values], device=device) for values in (row.tokens, row.positions))
    return model.decoder(
        model.embedding(tokens, positions),
        None,
        rotary_pos_emb=angles(model, max(row.positions) + 1)[positions[0]],
        packed_seq_params=describe_row(torch.tensor([row.positions]), device),
    )[:, 0]


def logits_of(model: GPTModel, states: torch.Tensor) -> torch.Tensor:
    """states [n, hidden] -> logits [n, padded vocabulary], gathered on all tensor-parallel ranks."""
    weight = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else None
    return model.output_layer(states[None], weight=weight, runtime_gather_output=True)[0][0]
