"""Logits or rewards, greedy continuations and the control of a checkpoint, by Megatron, for `convert.verify`."""

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.family import Entry
from megatron_chimed.convert.lora import open_checkpoint
from megatron_chimed.convert.model import build_model, load_opened
from megatron_chimed.convert.plan import DTYPES
from megatron_chimed.convert.tensors import split
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.jsonl import read_json


def logits(gpt: torch.nn.Module, tokens: torch.Tensor, vocab: int) -> torch.Tensor:
    """Compute logits [b, s, vocab] float32 of tokens [b, s] int64."""
    positions = torch.arange(tokens.size(1)).expand_as(tokens)
    return gpt(tokens, positions, None)[..., :vocab].float().contiguous()


def rewards(gpt: torch.nn.Module, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Compute rewards [b] float32 of the last tokens of tokens [b, s] int64, of which lengths [b] are no padding."""
    positions = torch.arange(tokens.size(1)).expand_as(tokens)
    return gpt(tokens, positions, None).float()[torch.arange(len(tokens)), lengths - 1]


def continue_greedily(gpt: torch.nn.Module, prompts: torch.Tensor, count: int, vocab: int) -> torch.Tensor:
    """Generate the `count` most likely next tokens [b, count] of prompts [b, s], a forward pass over all for each."""
    tokens = prompts
    for _ in range(count):
        following = logits(gpt, tokens, vocab)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, following], dim=1)
    return tokens[:, prompts.size(1) :].contiguous()


def undo_interleaving(gpt: torch.nn.Module, entry: Entry, model: Architecture, source: TorchDistCheckpoint) -> None:
    """Load the wrong conversion, which must show: query, key and value one below the other (with one group, where that
    is right, key and value exchanged)."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    shape = entry.megatron_shape(model.sizes)
    for number, layer in enumerate(gpt.decoder.layers):
        fused = source.read(entry.megatron, (number, 0, 0), (1, *shape))[0]
        query, key, value = split(entry, fused, model.sizes)
        wrong = torch.cat([query, key, value] if model.sizes.num_query_groups > 1 else [query, value, key])
        layer.self_attention.linear_qkv.weight.data.copy_(wrong.chunk(ranks)[rank])


@torch.no_grad()
def answer(folder: Path) -> None:
    """Answer FOLDER/request.json on the tokens of tokens.safetensors by megatron.safetensors, on this rank."""
    torch.distributed.init_process_group("gloo")
    request = read_json(folder / "request.json")
    opened = open_checkpoint(request["checkpoint"], check_base=False)  # the command has compared its hash
    model = opened.model
    tokens = load_file(folder / "tokens.safetensors")
    gpt = build_model(model, DTYPES[request["dtype"]], lora=opened.lora and opened.lora.options)
    load_opened(gpt, opened)
    vocab = model.sizes.vocab
    if model.head == "reward":
        outputs = functools.partial(rewards, gpt, tokens["tokens"], tokens["lengths"])
    else:
        outputs = functools.partial(logits, gpt, tokens["tokens"], vocab)
    results = {"outputs": outputs()}
    if request["generate"]:
        results["generated"] = continue_greedily(gpt, tokens["prompts"], request["generate"], vocab)
    fused = next(entry for entry in model.family.body if entry.merge == "qkv")
    undo_interleaving(gpt, fused, model, opened.base or opened.source)
    results["control"] = outputs()
    if torch.distributed.get_rank() == 0:
        save_file(results, folder / "megatron.safetensors")
    torch.distributed.destroy_process_group()
