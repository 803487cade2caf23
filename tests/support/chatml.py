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


def write_chatml(folder: Path, *, think_is_special: bool = False, eos: str = END) -> Path:
    """Write a Hugging Face folder. think_is_special: decoding leaves no trace of the tokens around thinking; as Qwen3
    has them it does. eos: EOS, which in a base model is not the token that ends an answer."""
    folder.mkdir(parents=True)
    write_tokenizer(write_model(folder).read_bytes(), folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|im_start|>", END, EOS)])
    marks = [AddedToken(token, normalized=False, special=think_is_special) for token in THINK]
    (backend.add_special_tokens if think_is_special else backend.add_tokens)(marks)
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
