"""Converted checkpoints at work: the same logits, texts and losses on both sides, at any layout, trained or not."""

import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.checkpoints import CONFIG, KINDS, same_bits, weights, write_hf
from support.corpora import write_model
from support.families import reference_loss
from support.job import MODEL, ROOT, VOCAB, Job, figures, write_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.verify import verify
from megatron_chimed.text.tokenizer import load_tokenizer


@pytest.mark.parametrize(("kind", "ranks"), [("mha", 1), ("gqa", 2)])
def test_logits_and_greedy_text_agree_and_the_control_does_not(tmp_path, kind, ranks):
    """The command's own check; tests/integration/test_families.py compares each family in each layout."""
    hf = write_hf(tmp_path / "hf", **KINDS[kind])
    hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    report = verify(hf, tmp_path / "megatron", tensor_parallel=ranks, generate=12)
    print(f"{kind} TP {ranks}: largest {report.largest:.1e}, mean {report.mean:.1e}, control {report.control:.1e}")
    assert report.passed and report.largest <= 1e-4 and report.agreeing == report.positions
    assert report.generated == (24, 24)
    assert report.control > 1e-2


def test_the_command_tells_one_changed_weight(tmp_path):
    hf = write_hf(tmp_path / "hf")
    hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    changed = weights(hf)
    changed["model.layers.3.mlp.down_proj.weight"][0, 0] += 0.5
    save_file(changed, hf / "model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, "tools/verify_checkpoint.py", "--hf", hf, "--megatron", tmp_path / "megatron"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.endswith("NOT the same model\n"), done.stdout + done.stderr


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_model_trained_by_two_ranks_goes_there_and_back(tmp_path, bf16):
    stage = {"data-path": str(write_corpus(tmp_path)), "tensor-model-parallel-size": 2}
    job = Job(tmp_path, stage=stage | {"use-distributed-optimizer": True, "bf16": bf16})
    job.run("--save", tmp_path / "run", "--train-iters", 20)
    megatron_to_hf(tmp_path / "run", tmp_path / "hf", progress=False)
    hf_to_megatron(tmp_path / "hf", tmp_path / "again", progress=False)
    megatron_to_hf(tmp_path / "again", tmp_path / "hf2", progress=False)
    exported = weights(tmp_path / "hf")
    assert same_bits(exported, weights(tmp_path / "hf2"))
    assert exported["model.embed_tokens.weight"].shape == (VOCAB, MODEL["hidden-size"])  # without the padding
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16 if bf16 else torch.float32}
    if not bf16:
        report = verify(tmp_path / "hf", tmp_path / "run", tensor_parallel=2, generate=8)
        assert report.passed and report.generated == (16, 16)


def test_a_trained_model_comes_with_its_tokenizer(tmp_path):
    from megatron_chimed.text.tokenizer_training import write_tokenizer

    model = write_model(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(model.read_bytes(), tmp_path / "tokenizer")
    given = {"tokenizer-type": "SentencePieceTokenizer", "tokenizer-model": str(tmp_path / "tokenizer/tokenizer.model")}
    job = Job(tmp_path, given, {"data-path": str(write_corpus(tmp_path))})
    settings = yaml.safe_load(job.model.read_text())
    del settings["megatron"]["vocab-size"]
    job.model.write_text(yaml.safe_dump(settings))
    job.run("--save", tmp_path / "run", "--train-iters", 2, ranks=1)
    megatron_to_hf(tmp_path / "run", tmp_path / "hf", progress=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = load_tokenizer(model)
    assert tokenizer.encode("头痛发热", add_special_tokens=False) == ours.encode("头痛发热")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert loaded.config.vocab_size == ours.vocab_size and loaded.config.eos_token_id == ours.eos_id
    text = loaded.generate(torch.tensor([ours.encode("慢性")]), max_new_tokens=4, do_sample=False)
    assert text.size(1) > 1


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, []),
        (2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
        (2, ["--pipeline-model-parallel-size", 2]),
    ],
    ids=["TP1", "TP2-SP", "PP2"],
)
def test_training_starts_from_a_converted_model_at_the_loss_of_transformers(tmp_path, ranks, layout):
    """The vocabulary, a prime, is padded to 128 at TP 1 and to 256 at TP 2: the padding has no part in the loss."""
    prefix = write_corpus(tmp_path, ids=CONFIG["vocab_size"])
    hf = write_hf(tmp_path / "hf")
    hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    job = Job(tmp_path, stage={"data-path": str(prefix)})
    job.model = tmp_path / "megatron/model.yaml"
    job.run(
        "--load", tmp_path / "megatron", "--finetune", "--tokenizer-type", "NullTokenizer",
        "--save", tmp_path / "run", "--train-iters", 1, *layout, ranks=ranks,
    )  # fmt: skip
    first = float(figures(tmp_path / "run")[0][1])
    assert first == pytest.approx(reference_loss(hf, prefix), abs=1e-5)
