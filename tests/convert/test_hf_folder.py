"""Folders of weights as people have them: two sets, Git LFS pointers, files that cannot be read."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import CONFIG, write_hf
from support.dialogues import make_tokenizer

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.tokenizer_files import copy_tokenizer
from megatron_chimed.convert.verify import verify
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import LFS_POINTER, open_input
from megatron_chimed.text.tokenizer import load_tokenizer

POINTER = LFS_POINTER.decode() + ".github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("hf") / "hf", num_hidden_layers=2)


@pytest.fixture
def folder(source, tmp_path):
    return shutil.copytree(source, tmp_path / "hf")


def split_into_shards(folder):
    """Shards and an index beside model.safetensors, as an older save leaves them."""
    tensors, places = load_file(folder / "model.safetensors"), {}
    for number in (1, 2):
        name = f"model-{number:05d}-of-00002.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number - 1 :: 2]}
        save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def refuse(folder, message):
    with pytest.raises(InputError, match=message) as caught:
        hf_to_megatron(folder, folder.parent / "out", progress=False)
    assert not (folder.parent / "out").exists()
    return str(caught.value)


def test_two_sets_of_weights_are_refused_by_both_names(folder):
    split_into_shards(folder)
    refuse(folder, r"two sets of weights, model\.safetensors and that of model\.safetensors\.index\.json; remove the")
    (folder / "model.safetensors").unlink()
    hf_to_megatron(folder, folder.parent / "out", progress=False)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (POINTER, "is a Git LFS pointer, not the file; run git lfs pull"),
        ("", "damaged or truncated"),
        (None, "missing"),
    ],
)
def test_a_shard_that_cannot_be_read_is_one_fault(folder, content, fault):
    split_into_shards(folder)
    (folder / "model.safetensors").unlink()
    shard = folder / "model-00002-of-00002.safetensors"
    shard.unlink() if content is None else shard.write_text(content)
    said = refuse(folder, "hf: 1 faults: model-00002-of-00002")
    assert fault in said and " is missing" not in said and "is not in" not in said


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
def test_a_pointer_in_the_place_of_a_tokenizer_is_named(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    for path in (tmp_path, tmp_path / name) if name == "tokenizer.model" else (tmp_path,):
        with pytest.raises(InputError, match=rf"{name}: is a Git LFS pointer, not the file; run git lfs pull"):
            load_tokenizer(path)


@pytest.mark.parametrize("name", ["config.json", "a.jsonl", "a.jsonl.gz"])
def test_a_pointer_in_the_place_of_any_input_is_named(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(InputError, match="is a Git LFS pointer"), open_input(tmp_path / name):
        pass


def test_a_tokenizer_of_more_ids_than_rows_is_refused_at_once(folder):
    tokenizer = make_tokenizer("hugging_face", folder.parent)
    copy_tokenizer(folder.parent / "hugging_face", folder)
    refuse(folder, rf"hf: the tokenizer has {tokenizer.vocab_size} ids and the embedding 103 rows.*resize_token_emb")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_with_their_place_both_ways(folder, monkeypatch, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    row = CONFIG["intermediate_size"] + 5  # up stands below gate
    refuse(folder, rf"decoder\.layers\.mlp\.linear_fc1\.weight\[1, {row}, 7\] is {value}; such weights are broken")
    monkeypatch.setattr("megatron_chimed.convert.plan.torch.aminmax", lambda tensor: (torch.zeros(1), torch.zeros(1)))
    hf_to_megatron(folder, folder.parent / "run", progress=False)
    if math.isnan(value):
        with pytest.raises(InputError, match="its outputs are no numbers"):
            verify(folder, folder.parent / "run")
    monkeypatch.undo()
    with pytest.raises(InputError, match=rf"model\.layers\.1\.mlp\.up_proj\.weight\[5, 7\] is {value}"):
        megatron_to_hf(folder.parent / "run", folder.parent / "back", progress=False)
    assert not (folder.parent / "back").exists()
