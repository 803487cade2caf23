"""Damaged inputs of the converter: each is one clear error, and leaves no output."""

import json
import random
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import weights, write_hf, write_plain
from support.paths import ROOT

from megatron_chimed.convert import checkpoint
from megatron_chimed.errors import InputError

INDEX = "model.safetensors.index.json"


def header_size(file: Path) -> int:
    """Length of the JSON header of a safetensors file."""
    return struct.unpack("<Q", file.read_bytes()[:8])[0]


def truncate(folder: Path, draw: random.Random) -> None:
    """Cut a shard somewhere."""
    file = draw.choice(sorted(folder.glob("*.safetensors")))
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content))])


def remove(folder: Path, draw: random.Random) -> None:
    """Lose a shard."""
    draw.choice(sorted(folder.glob("*.safetensors"))).unlink()


def flip_header(folder: Path, draw: random.Random) -> None:
    """Flip one bit of a shard's header or of its length, but not in the metadata's free text."""
    file = draw.choice(sorted(folder.glob("*.safetensors")))
    content = bytearray(file.read_bytes())
    place = draw.randrange(8 + header_size(file))
    content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def swap_shapes(folder: Path, draw: random.Random) -> None:
    """Transpose a matrix in the header: as many bytes, another shape."""
    file = draw.choice(sorted(folder.glob("*.safetensors")))
    content, size = file.read_bytes(), header_size(file)
    header = json.loads(content[8 : 8 + size])
    matrices = [n for n, t in header.items() if n != "__metadata__" and len(set(t["shape"])) == 2]
    if not matrices:
        return truncate(folder, draw)
    header[draw.choice(matrices)]["shape"].reverse()
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def add_tensor(folder: Path, draw: random.Random) -> None:
    """A tensor that no model of this kind has, with its line in the index or without."""
    name = draw.choice(["model.layers.9.mlp.up_proj.weight", "lm_head.bias", "x"])
    save_file({name: torch.ones(2)}, folder / "more.safetensors", metadata={"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = "more.safetensors" if draw.random() < 0.5 else draw.choice(["none.safetensors", "../x"])
    (folder / INDEX).write_text(json.dumps(index))


def break_index(folder: Path, draw: random.Random) -> None:
    """An index that sends a tensor elsewhere, forgets one, or is no index."""
    index = json.loads((folder / INDEX).read_text())
    names = sorted(index["weight_map"])
    kind = draw.randrange(4)
    if kind == 0:
        one, other = draw.sample(names, 2)
        while index["weight_map"][one] == index["weight_map"][other]:
            one, other = draw.sample(names, 2)
        index["weight_map"][one] = index["weight_map"][other]
    elif kind == 1:
        del index["weight_map"][draw.choice(names)]
    elif kind == 2:
        index["weight_map"] = draw.choice([[], None, {}, {"a": 1}])
    text = json.dumps(index)
    (folder / INDEX).write_text(text[: len(text) // 2] if kind == 3 else text)


def break_config(folder: Path, draw: random.Random) -> None:
    """A config.json with another size, without a key, or cut."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    key = draw.choice(["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "architectures"])
    if draw.random() < 0.6:
        config[key] = draw.choice([None, 7, -1, "x", 1.5, [], True])
    else:
        del config[key]
    text = json.dumps(config)
    path.write_text(text if draw.random() < 0.9 else text[: len(text) // 2])


DAMAGES = [truncate, remove, flip_header, swap_shapes, add_tensor, break_index, break_config]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("whole"), shard="40KB")


def test_two_hundred_damaged_folders_are_one_clear_error_each(whole, tmp_path):
    draw, seen = random.Random(0), Counter()
    for number in range(210):
        damage = DAMAGES[number % len(DAMAGES)]
        folder = tmp_path / "hf"
        shutil.copytree(whole, folder)
        damage(folder, draw)
        with pytest.raises(InputError) as caught:
            checkpoint.hf_to_megatron(folder, tmp_path / "megatron", progress=False)
        message = str(caught.value)
        assert "\n" not in message and str(folder) in message, (damage.__name__, message)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"], damage.__name__
        seen[damage.__name__] += 1
        shutil.rmtree(folder)
    assert len(seen) == len(DAMAGES) and min(seen.values()) == 30


def test_control_the_undamaged_folder_converts(whole, tmp_path):
    checkpoint.hf_to_megatron(whole, tmp_path / "megatron", progress=False)
    checkpoint.megatron_to_hf(tmp_path / "megatron", tmp_path / "again", progress=False)
    assert weights(tmp_path / "again").keys() == weights(whole).keys()


def test_damaged_megatron_checkpoints_are_one_clear_error_each(tmp_path):
    write_plain(tmp_path / "hf")
    checkpoint.hf_to_megatron(tmp_path / "hf", tmp_path / "run", progress=False)
    draw = random.Random(0)
    for number in range(60):
        shutil.copytree(tmp_path / "run", tmp_path / "damaged")
        place = tmp_path / "damaged/release"
        names = ["__0_0.distcp", ".metadata", "metadata.json"]
        file = place / names[number % 3]
        content = bytearray(file.read_bytes())
        if number % 4 == 0:
            file.unlink()
        elif number % 4 == 1 or number % 3 == 0:
            file.write_bytes(content[: draw.randrange(len(content))])
        else:
            content[:40] = bytes(draw.randrange(256) for _ in range(40))
            file.write_bytes(content)
        with pytest.raises(InputError) as caught:
            checkpoint.megatron_to_hf(tmp_path / "damaged", tmp_path / "out", progress=False)
        assert "\n" not in str(caught.value) and str(place) in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "hf", "run"]
        shutil.rmtree(tmp_path / "damaged")


def test_a_megatron_checkpoint_with_other_tensors_is_refused_with_all_of_them(tmp_path):
    from megatron_chimed.convert.plan import Planned
    from megatron_chimed.convert.torch_dist import TorchDistCheckpoint, write_checkpoint

    write_plain(tmp_path / "hf")
    checkpoint.hf_to_megatron(tmp_path / "hf", tmp_path / "run", progress=False)
    args = TorchDistCheckpoint(tmp_path / "run/release").args
    planned = [
        Planned("decoder.final_layernorm.weight", (63,), torch.float32, lambda: torch.ones(63)),
        Planned("output_layer.weight", (128, 64), torch.int32, lambda: torch.ones(128, 64, dtype=torch.int32)),
        Planned("decoder.final_layernorm.bias", (64,), torch.float32, lambda: torch.ones(64)),
    ]
    write_checkpoint(tmp_path / "other", planned, [], args, lambda count: None)
    with pytest.raises(InputError) as caught:
        checkpoint.megatron_to_hf(tmp_path / "other", tmp_path / "out", progress=False)
    for fault in (
        "10 faults",
        "embedding.word_embeddings.weight is missing",
        "decoder.final_layernorm.weight has shape [63], the arguments make it [64]",
        "output_layer.weight is torch.int32",
        "decoder.final_layernorm.bias is no weight of this model",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("hf", "megatron", "options", "message"),
    [
        ("none", "out", None, "none: no such folder"),
        ("empty", "out", None, "no weights here; expected model.safetensors"),
        ("out", "none", {}, "none: no such folder"),
        ("out", "empty", {}, "empty: holds no checkpoint (no iter_..., no release)"),
        ("out", "run", {"iteration": 9}, "has no iter_0000009; there is release"),
        ("out", "run", {"tokenizer": "/none"}, "/none: no such file or folder; give a tokenizer"),
        ("run", "run", {}, "exists already; remove it or name another folder"),
    ],
)
def test_what_is_not_there_or_in_the_way_is_named(tmp_path, hf, megatron, options, message):
    write_plain(tmp_path / "hf")
    (tmp_path / "empty").mkdir()
    checkpoint.hf_to_megatron(tmp_path / "hf", tmp_path / "run", progress=False)
    with pytest.raises(InputError) as caught:
        if options is None:
            checkpoint.hf_to_megatron(tmp_path / hf, tmp_path / megatron, progress=False)
        else:
            checkpoint.megatron_to_hf(tmp_path / megatron, tmp_path / hf, progress=False, **options)
    assert message in str(caught.value) and not (tmp_path / "out").exists()


def test_the_command_refuses_in_one_line_with_exit_code_1(tmp_path):
    words = ["hf-to-megatron", "--hf", tmp_path, "--megatron", tmp_path / "out"]
    command = [sys.executable, ROOT / "tools/convert_checkpoint.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no weights here" in done.stderr, done.stderr
