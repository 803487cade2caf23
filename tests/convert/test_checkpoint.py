"""Whole checkpoints there and back: exact to the bit, lazy, atomic, and strict."""

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.checkpoints import CONFIG, KINDS, same_bits, weights, write_hf, write_plain
from support.dialogues import KINDS as TOKENIZERS
from support.dialogues import make_tokenizer
from support.mutations import THOROUGH
from support.paths import ROOT
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import BytesIOWriteData, SavePlan, TensorWriteData, WriteItem, WriteItemType
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from megatron_chimed.checkpoints import resolve
from megatron_chimed.convert import checkpoint, hf_folder, verify
from megatron_chimed.convert.architecture import read_hf
from megatron_chimed.convert.families import FAMILIES
from megatron_chimed.convert.lora import open_checkpoint
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError


def there_and_back(hf: Path, work: Path, dtype: str = "keep", **options) -> Path:
    """Convert to Megatron and back; the new Hugging Face folder."""
    checkpoint.hf_to_megatron(hf, work / "megatron", dtype, progress=False)
    checkpoint.megatron_to_hf(work / "megatron", work / "again", progress=False, **options)
    return work / "again"


def aligned(model: torch.nn.Module) -> torch.nn.Module:
    """With weights in memory of its own: mapped from a file, where they begin decides the last bits of a product."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_is_exact_to_the_bit(kind, dtype, tmp_path):
    hf = write_hf(tmp_path / "hf", dtype, **KINDS[kind])
    again = there_and_back(hf, tmp_path)
    assert same_bits(weights(hf), weights(again))
    one, other = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (hf, again))
    tokens = torch.arange(40)[None]
    assert torch.equal(aligned(one)(tokens).logits, aligned(other)(tokens).logits)


def test_a_missing_tokenizer_is_told(tmp_path, capsys):
    there_and_back(write_plain(tmp_path / "hf"), tmp_path)
    assert (
        "again: no tokenizer is with it (of the training: none that has files); give --token" in capsys.readouterr().err
    )


def test_the_reward_head_converts_both_ways(tmp_path):
    hf = write_hf(tmp_path / "hf", reward=True)
    again = there_and_back(hf, tmp_path)
    assert same_bits(weights(hf), weights(again)) and "score.weight" in weights(again)
    one, other = (AutoModelForSequenceClassification.from_pretrained(folder, pad_token_id=0) for folder in (hf, again))
    tokens = torch.arange(1, 40)[None]
    assert other.config.num_labels == 1 and torch.equal(aligned(one)(tokens).logits, aligned(other)(tokens).logits)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_exported_reward_model_scores_a_padded_answer_at_its_eos(tmp_path, kind):
    tokenizer = make_tokenizer(kind, tmp_path)
    files = next(iter(sorted((tmp_path / kind).glob("*.model"))), tmp_path / kind)
    hf = write_hf(tmp_path / "hf", reward=True, vocab_size=tokenizer.vocab_size)
    again = there_and_back(hf, tmp_path, tokenizer=files)
    model = AutoModelForSequenceClassification.from_pretrained(again).eval()
    pad, eos = model.config.pad_token_id, tokenizer.eos_id
    assert pad not in (None, eos)
    if kind == "pad_is_eos":
        assert AutoTokenizer.from_pretrained(again).pad_token_id == pad
    short, long = [5, 6, eos], [7, 8, 9, 10, eos]
    padded = torch.tensor([[*short, pad, pad], long])
    alone = [model(torch.tensor([tokens])).logits[0] for tokens in (short, long)]
    assert torch.allclose(model(padded, attention_mask=padded != pad).logits, torch.stack(alone), atol=1e-5)


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 20),
    st.integers(1, 40), st.booleans(), st.booleans(), st.integers(1, 4000), st.sampled_from(FAMILIES),
    st.sampled_from(["lm", "reward"]),
)  # fmt: skip
@settings(max_examples=400 if THOROUGH else 25)
def test_any_shape_survives_a_round_trip(
    layers, groups, per_group, half, hidden, vocab, tied, half_precision, shard, family, head
):
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        hf = write_plain(
            work / "hf",
            torch.bfloat16 if half_precision else torch.float32,
            num_hidden_layers=layers,
            num_attention_heads=groups * per_group,
            num_key_value_heads=groups,
            head_dim=2 * half,
            hidden_size=hidden,
            intermediate_size=hidden + 3,
            vocab_size=vocab,
            tie_word_embeddings=tied,
            architectures=[next(name for name, one in family.architectures.items() if one == head)],
            model_type=family.name,
            sliding_window=None,
        )
        again = there_and_back(hf, work, max_shard_bytes=shard)
        assert same_bits(weights(hf), weights(again)) and read_hf(hf) == read_hf(again)


def test_shards_keep_to_their_size_and_are_listed(tmp_path):
    hf = write_hf(tmp_path / "hf", shard="40KB")
    again = there_and_back(hf, tmp_path, max_shard_bytes=40_000)
    assert len(list(hf.glob("*.safetensors"))) > 5
    files = sorted(again.glob("*.safetensors"))
    assert len(files) > 5
    largest = max(tensor.nbytes for tensor in weights(again).values())
    assert all(file.stat().st_size <= max(40_000, largest) + 4096 for file in files)
    assert same_bits(weights(hf), weights(again))
    AutoModelForCausalLM.from_pretrained(again)


@pytest.mark.parametrize("shards", [1, 2])
def test_pytorch_files_are_read_too(tmp_path, shards):
    hf = write_hf(tmp_path / "hf")
    tensors = weights(hf)
    (hf / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = [names] if shards == 1 else [names[:10], names[10:]]
    files = ["pytorch_model.bin"] if shards == 1 else ["pytorch_model-1.bin", "pytorch_model-2.bin"]
    for file, part in zip(files, parts, strict=True):
        torch.save({name: tensors[name] for name in part}, hf / file)
    if shards > 1:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        hf_folder.write_json(hf / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    assert same_bits(tensors, weights(there_and_back(hf, tmp_path)))


def test_a_pytorch_file_of_the_old_form_is_read_too(tmp_path):
    hf = write_hf(tmp_path / "hf")
    tensors = weights(hf)
    (hf / "model.safetensors").unlink()
    torch.save(tensors, hf / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same_bits(tensors, weights(there_and_back(hf, tmp_path)))


def test_a_pytorch_file_that_would_run_code_is_refused(tmp_path):
    hf = write_hf(tmp_path / "hf")
    (hf / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Path}, hf / "pytorch_model.bin")  # a class that weights_only does not know
    with pytest.raises(InputError, match=r"pytorch_model.bin: damaged or truncated"):
        checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_are_converted_to_the_type_that_is_asked_for(tmp_path, dtype):
    hf = write_hf(tmp_path / "hf", torch.float16)
    again = weights(there_and_back(hf, tmp_path, dtype))
    wanted = getattr(torch, dtype)
    assert same_bits({name: tensor.to(wanted) for name, tensor in weights(hf).items()}, again)


def test_old_buffers_and_a_stored_copy_of_tied_embeddings_are_no_fault(tmp_path):
    hf = write_hf(tmp_path / "hf", tie_word_embeddings=True)
    expected = weights(hf)
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    more["lm_head.weight"] = expected["model.embed_tokens.weight"].clone()
    save_file(expected | more, hf / "model.safetensors", metadata={"format": "pt"})
    assert same_bits(expected, weights(there_and_back(hf, tmp_path)))
    more["lm_head.weight"][0] += 1
    save_file(expected | more, hf / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lm_head.weight is in model.safetensors, and no tensor of this model"):
        checkpoint.hf_to_megatron(hf, tmp_path / "other", progress=False)


def test_layers_of_several_types_need_a_decision(tmp_path):
    hf = write_hf(tmp_path / "hf")
    tensors = weights(hf)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].bfloat16()}, hf / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="give --dtype to make them one"):
        checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    checkpoint.hf_to_megatron(hf, tmp_path / "megatron", "float32", progress=False)


def test_tensors_are_made_one_at_a_time(tmp_path, monkeypatch):
    """Reads and writes alternate: never is more than one Megatron tensor read before it is written."""
    hf = write_hf(tmp_path / "hf")
    events = []
    original = hf_folder.open_safetensors

    def traced(path):
        stored = original(path)
        return {
            name: hf_folder.Stored(s.file, s.shape, s.dtype, lambda n=name, s=s: (events.append(n), s.read())[1])
            for name, s in stored.items()
        }

    monkeypatch.setattr(hf_folder, "open_safetensors", traced)
    update = lambda self, count: events.append("written")  # noqa: E731
    monkeypatch.setattr(checkpoint.tqdm, "update", update)
    checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    assert events.count("written") == 3 + 4 * 6
    waiting = longest = 0
    for event in events:
        waiting = 0 if event == "written" else waiting + 1
        longest = max(longest, waiting)
    assert longest == 3  # query, key and value of one layer


def test_an_existing_output_is_left_alone(tmp_path):
    hf = write_hf(tmp_path / "hf")
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron/mine").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    assert [path.name for path in (tmp_path / "megatron").iterdir()] == ["mine"]


def test_too_small_a_disk_is_found_before_anything_is_written(tmp_path, monkeypatch):
    hf = write_hf(tmp_path / "hf")
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 5, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"0.0 GB free, 0.1 GB needed"):
        checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_a_disk_that_fails_in_the_middle_is_one_line_and_leaves_nothing(tmp_path, direction):
    hf = write_plain(tmp_path / "hf")
    checkpoint.hf_to_megatron(hf, tmp_path / "start", progress=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # no file may grow beyond
    try:
        with pytest.raises((InputError, OSError)) as caught:
            if direction == "hf-to-megatron":
                checkpoint.hf_to_megatron(hf, tmp_path / "out", progress=False)
            else:
                checkpoint.megatron_to_hf(tmp_path / "start", tmp_path / "out", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "start"]


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_killed_in_the_middle_nothing_passes_for_whole_and_the_next_run_is_clean(tmp_path, direction):
    hf = write_plain(tmp_path / "hf", num_hidden_layers=20, hidden_size=512, intermediate_size=1024, vocab_size=2000)
    checkpoint.hf_to_megatron(hf, tmp_path / "start", progress=False)
    source = ["--hf", hf] if direction == "hf-to-megatron" else ["--megatron", tmp_path / "start"]
    target = ["--megatron" if direction == "hf-to-megatron" else "--hf", tmp_path / "out"]
    command = [sys.executable, ROOT / "tools/convert_checkpoint.py", direction, *source, *target]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    partial = tmp_path / ".out.incomplete"
    while process.poll() is None and time.monotonic() < deadline:
        written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.exists() else 0
        if written > 2_000_000:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the conversion ended before it was killed"
    assert not (tmp_path / "out").exists() and partial.exists()
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    assert not partial.exists()
    again = tmp_path / "out"
    if direction == "hf-to-megatron":
        checkpoint.megatron_to_hf(again, tmp_path / "again", progress=False)
        again = tmp_path / "again"
    assert same_bits(weights(hf), weights(again))


def test_two_conversions_to_one_folder_refuse_each_other(tmp_path):
    from megatron_chimed.jsonl import atomic_folder

    with atomic_folder(tmp_path / "out") as first:
        (first / "x").write_text("x")
        with pytest.raises(InputError, match="another process is writing it"), atomic_folder(tmp_path / "out"):
            pass
    assert (tmp_path / "out/x").exists() and sorted(os.listdir(tmp_path)) == ["out"]


def test_a_checkpoint_is_found_by_iteration(tmp_path):
    hf = write_plain(tmp_path / "hf")
    checkpoint.hf_to_megatron(hf, tmp_path / "run", progress=False)
    assert resolve(tmp_path / "run").name == "release"
    with pytest.raises(InputError, match="has no iter_0000005; there is release"):
        resolve(tmp_path / "run", 5)
    os.rename(tmp_path / "run/release", tmp_path / "run/iter_0000005")
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("5")
    assert resolve(tmp_path / "run").name == resolve(tmp_path / "run", 5).name == "iter_0000005"
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("")
    with pytest.raises(InputError, match="give --iteration, one of iter_0000005"):
        resolve(tmp_path / "run")
    with pytest.raises(InputError, match="no such folder"):
        resolve(tmp_path / "nothing")


def test_the_metadata_of_a_checkpoint_cannot_run_code(tmp_path):
    hf = write_plain(tmp_path / "hf")
    checkpoint.hf_to_megatron(hf, tmp_path / "run", progress=False)
    marker = tmp_path / "ran"
    evil = b"cos\nsystem\n(S'touch %s'\ntR." % str(marker).encode()
    (tmp_path / "run/release/.metadata").write_bytes(evil)
    with pytest.raises(InputError, match=r"\.metadata: damaged"):
        TorchDistCheckpoint(tmp_path / "run/release")
    assert not marker.exists()


def test_metadata_with_the_plans_of_the_ranks_is_read_as_torch_2_13_writes_it(tmp_path):
    hf = write_plain(tmp_path / "hf")
    checkpoint.hf_to_megatron(hf, tmp_path / "run", progress=False)
    place, path = tmp_path / "run/release", tmp_path / "run/release/.metadata"
    with open(path, "rb") as file:
        metadata = pickle.load(file)
    index = MetadataIndex("w", (0, 0))
    chunk = ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((2, 3)))
    data = TensorWriteData(chunk, TensorProperties(dtype=torch.bfloat16), torch.Size((2, 3)))
    items = [WriteItem(index, WriteItemType.SHARD, tensor_data=data)]
    items.append(WriteItem(index, WriteItemType.BYTE_IO, bytes_io_data=BytesIOWriteData(5)))
    metadata.all_local_plans = [SavePlan(items), SavePlan([])]
    names = TorchDistCheckpoint(place).tensors.keys()
    path.write_bytes(pickle.dumps(metadata))
    assert TorchDistCheckpoint(place).tensors.keys() == names


def test_all_faults_of_a_folder_are_told_at_once(tmp_path):
    hf = write_plain(tmp_path / "hf")
    tensors = weights(hf)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(3, 3)
    tensors["extra"] = torch.ones(1)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].long()
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    for fault in (
        "4 faults",
        "model.norm.weight is missing",
        "model.layers.0.mlp.up_proj.weight has shape [3, 3], config.json makes it [96, 64]",
        "lm_head.weight is torch.int64; expected bfloat16, float16 or float32",
        "extra is in model.safetensors, and no tensor of this model",
    ):
        assert fault in str(caught.value)


def test_two_families_that_differ_in_their_names_alone_are_compared_as_one_model(tmp_path):
    """A Mistral that was trained without the option `family`; its checkpoint says LLaMA."""
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
    for name, changes in {
        "llama": {},
        "mistral": mistral,
        "longer": mistral | {"max_position_embeddings": 256},
    }.items():
        write_plain(tmp_path / name, **changes)
    checkpoint.hf_to_megatron(tmp_path / "llama", tmp_path / "run", progress=False)
    place = open_checkpoint(tmp_path / "run")
    assert verify.same_architecture(tmp_path / "mistral", place) == read_hf(tmp_path / "mistral")
    with pytest.raises(InputError, match=r"are different models: max_positions is 256, and 128$"):
        verify.same_architecture(tmp_path / "longer", place)
    qwen = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}
    write_plain(tmp_path / "qwen", **qwen)
    with pytest.raises(InputError, match=r"are different models: family is Qwen3, and LLaMA$"):
        verify.same_architecture(tmp_path / "qwen", place)


LIES = {
    "tied forgotten": (
        "qwen2",
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        "lm_head.weight is missing",
    ),
    "tied by mistake": (
        "qwen3",
        {"head_dim": 16},
        {"tie_word_embeddings": True},
        "lm_head.weight is in model.safetensors, and no tensor of this model",
    ),
    "head size left out": (
        "qwen3",
        {"head_dim": 24},
        {"head_dim": None},
        "head_dim is None; expected a whole number above 0",
    ),
    "head size guessed": (
        "qwen3",
        {"head_dim": 24},
        {"head_dim": 16},
        "q_proj.weight has shape [96, 64], config.json makes it [64, 64]",
    ),
    "biases unknown": (
        "qwen2",
        {},
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        "self_attn.q_proj.bias is in model.safetensors, and no tensor of this model",
    ),
    "biases missing": (
        "mistral",
        {"sliding_window": None},
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        "self_attn.k_proj.bias is missing",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_config_that_says_another_thing_than_the_tensors_is_refused(tmp_path, lie):
    name, changes, lies, message = LIES[lie]
    family = next(one for one in FAMILIES if one.name == name)
    hf = write_plain(tmp_path / "hf", architectures=[next(iter(family.architectures))], model_type=name, **changes)
    config = hf_folder.read_json(hf / "config.json")
    hf_folder.write_json(hf / "config.json", config | lies)
    with pytest.raises(InputError) as caught:
        checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    assert message in str(caught.value)


def test_a_config_that_does_not_fit_the_tensors_is_refused(tmp_path):
    hf = write_plain(tmp_path / "hf")
    config = hf_folder.read_json(hf / "config.json")
    hf_folder.write_json(hf / "config.json", config | {"num_hidden_layers": 3, "vocab_size": 100})
    with pytest.raises(InputError) as caught:
        checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    assert "model.layers.3.mlp.up_proj.weight is in" in str(caught.value)
    assert f"has shape [{CONFIG['vocab_size']}, 64], config.json makes it [100, 64]" in str(caught.value)
