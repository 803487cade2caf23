"""Damaged files of models, both ways: one line and nothing written, or a whole output. Never a crash, never half."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.chatml import write_chatml
from support.checkpoints import write_plain
from support.families import config_of
from support.mutations import BYTE_KINDS, THOROUGH, mutate_bytes

from megatron_chimed.checkpoints import MANIFEST, resolve
from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.errors import InputError, one_line
from megatron_chimed.jsonl import write_json
from megatron_chimed.text.jinja import record
from megatron_chimed.text.template import load_template
from megatron_chimed.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow
NUM_MUTANTS = 1000 if THOROUGH else 16  # of each kind of folder
TOKENS = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b'"', b"{", b"}", b"[" * 3000, b"null", b"NaN", b"1e999", b"-1"]
TOKENS += [
    b"9" * 5000,
    b"\\ud800",
    b"../",
    b"\x80\x02",
    b"cos\nsystem\n",
    b"version https://git-lfs.github.com/spec/v1\n",
]
VALUES = [None, True, 0, -1, 1.5, 10**9, 10**300, float("nan"), "", "8", "../x", "\ud800", "a" * 9000]
VALUES += [[], {}, [[]], [None], ["LlamaForCausalLM"], {"rope_type": "yarn"}, {"": 0}]
"""What another tool may have written for any value."""
SIZES = ("vocab_size", "num_hidden_layers")
"""Of every kind alike."""


def plain(folder: Path, **changes) -> Path:
    """A small model with a tokenizer, a chat template and generation settings."""
    write_chatml(folder)
    write_plain(folder, vocab_size=load_tokenizer(folder).vocab_size, num_hidden_layers=2, **changes)
    (folder / "chat_template.jinja").write_text(record(load_template("chatml")), encoding="utf-8")
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 3], "temperature": 0.7})
    return folder


def shards(folder: Path) -> Path:
    """Two safetensors files and their index."""
    tensors = load_file(plain(folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[:9], names[9:]), start=1):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def pickled(folder: Path) -> Path:
    """The weights as torch.save writes them."""
    torch.save(load_file(plain(folder) / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def experts(folder: Path) -> Path:
    """A mixture of experts."""
    changes = config_of("qwen3_moe odd head size")
    return plain(folder, **{name: value for name, value in changes.items() if name not in SIZES})


def trained(folder: Path) -> Path:
    """A Megatron checkpoint without a manifest, which would find every change before it is read."""
    hf_to_megatron(plain(folder.with_name("base")), folder, progress=False)
    (resolve(folder) / MANIFEST).unlink(missing_ok=True)
    return folder


KINDS = {"plain": plain, "shards": shards, "pickled": pickled, "experts": experts, "trained": trained}


def places(value, found=()):
    """Every place in a JSON value, as its keys."""
    yield found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*found, key))


def mutate_json(draw: random.Random, content: bytes) -> bytes:
    """Another value at one of the places, or that place removed; a file that is no JSON any more stays."""
    try:
        tree = {"": json.loads(content)}
    except ValueError:
        return content
    *way, last = draw.choice(list(places(tree))[1:200])
    inner = tree
    for key in way:
        inner = inner[key]
    if draw.random() < 0.2 and way:
        del inner[last]
    else:
        inner[last] = draw.choice(VALUES)
    return json.dumps(tree[""]).encode()


def damage(draw: random.Random, folder: Path) -> None:
    """Change, exchange or remove one of the folder's files, each as likely as another."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, other = draw.choice(files), draw.choice(files)
    content = path.read_bytes()
    kind = draw.choice([*BYTE_KINDS, *["json"] * 5, "remove", "exchange", "empty", "folder"])
    if kind == "json" and path.name.endswith(".json"):
        path.write_bytes(mutate_json(draw, content))
    elif kind == "exchange":
        path.write_bytes(other.read_bytes())
    elif kind in BYTE_KINDS:
        path.write_bytes(mutate_bytes(draw, kind, content, TOKENS))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()


def convert(source: Path, output: Path, back: Path) -> None:
    """The way that takes a folder, and the other way if its output is a checkpoint."""
    if (source / "config.json").exists() or source.name != "trained":
        hf_to_megatron(source, output, progress=False)
        megatron_to_hf(output, back, progress=False)
    else:
        megatron_to_hf(source, output, progress=False)
        load_file(output / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_model_is_refused_in_one_line_or_converted_as_a_whole(tmp_path, kind, capfd):
    draw = random.Random(f"hostile {kind}")
    good = KINDS[kind](tmp_path / "good" / kind)
    outcomes = {"whole": 0, "refused": 0}
    for _ in range(NUM_MUTANTS):
        work = tmp_path / "work"
        source = Path(shutil.copytree(good, work / kind))
        for _ in range(draw.choice([1, 1, 2])):
            damage(draw, source)
        try:
            convert(source, work / "output", work / "back")
        except InputError as error:
            message = one_line(error)
            assert len(message) < 3000 and "\n" not in str(error), message
            assert [path.name for path in work.iterdir()] == [kind], message
            outcomes["refused"] += 1
        else:
            outcomes["whole"] += 1
        shutil.rmtree(work)
    assert min(outcomes.values()) > NUM_MUTANTS // 20, outcomes  # both were seen
    assert not re.search("^Traceback", capfd.readouterr().err, re.M)
