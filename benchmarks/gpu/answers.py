"""Generation by our engine and by transformers' generate, of one model with random weights: greedy, past any EOS."""

import shutil
from pathlib import Path
from typing import Any

import torch
from one_way import peak_bytes
from training import take_device, without_backend


def write_model(given: dict[str, Any], folder: Path) -> None:
    """One model for both: FOLDER/hf, and FOLDER/megatron converted of it."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from megatron_chimed.convert.checkpoint import hf_to_megatron

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=given["hidden"], intermediate_size=given["ffn"], num_hidden_layers=given["layers"],
        num_attention_heads=given["heads"], vocab_size=given["vocab"], max_position_embeddings=given["sequence"],
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device(given["device"]):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, given["dtype"]))
    model.save_pretrained(folder / "hf")
    hf_to_megatron(folder / "hf", folder / "megatron", progress=False)


def measure(way: str, given: dict[str, Any], path: Path) -> dict[str, Any]:
    """For each size of a batch and each side tokens per second; and how many texts are equal to the last token."""
    take_device()
    from generation import by_engine, by_transformers, load_transformers
    from generation import measure as in_turn

    from megatron_chimed.inference.megatron_engine import MegatronEngine

    def without(*words):
        with without_backend():
            return by_transformers(*words)

    folder = path.with_name("generation_model")
    shutil.rmtree(folder, ignore_errors=True)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(given["prompt"] // 4, given["prompt"] + 1, (max(given["batches"]),), generator=draw)
    prompts = [torch.randint(given["vocab"], (int(length),), generator=draw).tolist() for length in lengths]
    batches = {}
    try:
        write_model(given, folder)
        reference = load_transformers(folder / "hf", getattr(torch, given["dtype"])).to(given["device"])
        with MegatronEngine(folder / "megatron", dtype=given["dtype"], progress=False) as engine:
            for size in given["batches"]:
                engine.batch_size, asked = size, prompts[:size]
                ways = {
                    "ours": lambda a=asked: by_engine(engine, a, given["new_tokens"]),
                    "transformers": lambda a=asked, s=size: without(reference, s, a, given["new_tokens"]),
                }
                seconds, texts = in_turn(ways, given["passes"])
                equal = sum(a == b for a, b in zip(texts["ours"], texts["transformers"], strict=True))
                rates = {name: size * given["new_tokens"] / each for name, each in seconds.items()}
                batches[str(size)] = {"tokens_per_second": rates, "texts": size, "equal": equal}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"batches": batches, "new_tokens": given["new_tokens"], "peak_bytes_of_transformers": peak_bytes()}
