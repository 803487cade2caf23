"""Small Hugging Face folders for tests of the converter, made by transformers or straight from the name table."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_chimed.convert import architecture as arch

CONFIG = {
    "vocab_size": 103,  # a prime: every tensor-parallel size needs padding
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

KINDS = {
    "mha": {"num_key_value_heads": 4},
    "gqa": {},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "odd head_dim": {"head_dim": 22},
    "llama3 rope": {
        "max_position_embeddings": 16384,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "rope_theta": 500000.0,
    },
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
}


def write_hf(folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", reward: bool = False, **changes):
    """A random model saved by transformers; weights large enough for logits that tell models apart."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    more = {"num_labels": 1, "pad_token_id": 0} if reward else {}
    kind = LlamaForSequenceClassification if reward else LlamaForCausalLM
    model = kind(LlamaConfig(**CONFIG | more | changes))
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=draw)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def write_plain(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> Path:
    """A random model straight from the name table, without transformers: quick, and of any shape."""
    config = CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | changes
    model = arch.from_hf(config, "config.json")
    draw = torch.Generator().manual_seed(seed)
    shapes = model.family.hf_tensors(model.head, model.tied, model.sizes)
    tensors = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files in a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether names, types, shapes and all bits are equal."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and tensor.shape == other[name].shape
        and torch.equal(tensor.contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8))
        for name, tensor in one.items()
    )
