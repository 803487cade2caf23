"""A small tokenizer with the tokens of ChatML and of thinking, as Qwen3 has them, and renderers of its templates."""

import json
from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import load_template
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_training import write_tokenizer
from support.corpora import write_model

END, EOS = "<|im_end|>", "<|endoftext|>"
THINK = ["<think>", "</think>"]


def write_chatml(folder: Path, *, special: bool = False, eos: str = END) -> Path:
    """Write a Hugging Face folder. special: decoding leaves no trace of the tokens around thinking, and of the one that
    ends an answer; else it shows them, as that of Qwen3 shows the first. eos: EOS, which may be another."""
    folder.mkdir(parents=True)
    write_tokenizer(write_model(folder).read_bytes(), folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for token in ("<|im_start|>", END, EOS, *THINK):
        added = AddedToken(token, normalized=False, special=special or token in ("<|im_start|>", EOS))
        (backend.add_special_tokens if added.special else backend.add_tokens)([added])
    backend.save(str(folder / "tokenizer.json"))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text()) | {"eos_token": eos}
        content.pop("bos_token")
        content |= {"tokenizer_class": "PreTrainedTokenizerFast"} if "tokenizer_class" in content else {}
        (folder / name).write_text(json.dumps(content))
    for path in folder.glob("tokenizer.[mv]*"):
        path.unlink()
    return folder


def chatml_renderer(folder: Path, template: str = "qwen3", *, thinking: str = "train", **changes) -> Renderer:
    """A renderer of a shipped template with changed fields, over the tokenizer of `write_chatml`."""
    return Renderer(replace(load_template(template), **changes), load_tokenizer(folder), thinking)
