"""Every family at work: logits, texts and gradients of transformers in every layout, and controls that differ."""

import itertools
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.checkpoints import same_bits, weights
from support.dialogues import make_tokenizer
from support.families import (
    CASES,
    expected,
    has_experts,
    has_gradients,
    make_batch,
    make_model,
    reference_loss,
    write_case,
)
from support.job import Job, figures, write_corpus
from support.ranks import start

from megatron_chimed.convert.architecture import read_hf
from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.tokenizer_files import copy_tokenizer

LAYOUTS = {
    "TP 1": {},
    "TP 2": {"tp": 2},
    "TP 2 with sequence parallelism": {"tp": 2, "sequence_parallel": True},
    "PP 3": {"pp": 3},
    "EP 2": {"ep": 2},
}
CONTROLS = {
    "qwen2 tied": ["biases left out", "tied forgotten"],
    "qwen2 one group, yarn": ["positions not scaled"],
    "qwen2 reward": ["biases left out"],
    "qwen3 head size of its own": ["norms of q and k swapped"],
    "qwen3 tied, yarn": ["positions not scaled", "attention factor ignored", "tied forgotten"],
    "qwen3 reward": ["norms of q and k swapped"],
    "qwen3_moe odd head size": ["two experts exchanged", "norms of q and k swapped"],
    "qwen3_moe one group, tied, scores as they are": ["two experts exchanged", "scores normalised", "tied forgotten"],
    "qwen3_moe reward": ["two experts exchanged"],
    "llama yarn of other constants": ["positions not scaled", "attention factor ignored"],
    "llama llama3 of other constants": ["positions not scaled", "Megatron's constants of llama3"],
    "llama linear": ["positions not scaled"],
}
RUN = [one for one in itertools.product(LAYOUTS, CASES) if has_experts(one[1]) or one[0] != "EP 2"]
LOGITS, GRADIENTS, DIFFERENT = 1e-4, 1e-5, 1e-2


@pytest.fixture(scope="module")
def world(tmp_path_factory, one_thread):
    """A folder with a checkpoint and a batch of every case, and what transformers makes of it."""
    folder, answers = tmp_path_factory.mktemp("families"), {}
    for name in CASES:
        model = write_case(folder / name / "hf", name)
        hf_to_megatron(folder / name / "hf", folder / name / "megatron", progress=False)
        batch = make_batch(model.config.vocab_size)
        save_file(batch, folder / name / "batch.safetensors")
        answers[name] = expected(model, batch)
    return folder, answers


@pytest.fixture(scope="module")
def found(world):
    """What Megatron computes, {(layout, case): tensors}: three sessions of ranks go through all cases."""
    folder, _ = world
    for ranks in (1, 2, 3):
        wanted = [{"name": name} | how for name, how in LAYOUTS.items() if max([1, *how.values()]) == ranks]
        words = [folder, json.dumps(wanted), json.dumps(CONTROLS)]
        session = start(words, ranks, folder / "output.txt", "support.family_worker")
        assert session.wait(240) == 0, (folder / "output.txt").read_text()[-4000:]
    results = {}
    for layout, name in RUN:
        if not has_gradients(layout, has_experts(name)):
            results[layout, name] = load_file(folder / name / f"{layout}.safetensors")
            continue
        gradients = folder / name / f"{layout} gradients"
        megatron_to_hf(folder / name / layout, gradients, progress=False)
        exported = {f"gradient of {one}": tensor for one, tensor in weights(gradients).items()}
        results[layout, name] = load_file(folder / name / f"{layout}.safetensors") | exported
    return results


TRAINED = {
    "qwen2 tied": (2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
    "qwen3 tied, yarn": (2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
    "mistral odd head size": (1, []),
    "qwen3_moe odd head size": (2, ["--expert-model-parallel-size", 2, "--moe-token-dispatcher-type", "alltoall"]),
    "llama llama3 of other constants": (3, ["--pipeline-model-parallel-size", 3]),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_starts_at_the_loss_of_transformers_and_is_exported_as_its_family(world, tmp_path, name):
    folder, (ranks, layout) = world[0] / name, TRAINED[name]
    before = read_hf(folder / "hf")
    prefix = write_corpus(tmp_path, ids=before.sizes.vocab)
    job = Job(tmp_path, stage={"data-path": str(prefix), "eval-iters": 0})
    job.model = folder / "megatron/model.yaml"
    start = ["--load", folder / "megatron", "--finetune", "--tokenizer-type", "NullTokenizer", "--train-iters", 1]
    job.run(*start, "--save", tmp_path / "run", *layout, ranks=ranks)
    first = float(figures(tmp_path / "run")[0][1])
    assert first == pytest.approx(reference_loss(folder / "hf", prefix), abs=1e-5)
    megatron_to_hf(tmp_path / "run", tmp_path / "hf", progress=False)
    assert read_hf(tmp_path / "hf") == before
    moved = weights(tmp_path / "hf")
    assert all(not torch.equal(tensor, moved[name]) for name, tensor in weights(folder / "hf").items())


def test_rows_of_the_embedding_that_the_tokenizer_has_no_ids_for_stay(tmp_path):
    """Converted, trained at TP 2, which pads further, and exported: as many rows as config.json had."""
    tokenizer = make_tokenizer("hugging_face", tmp_path)
    rows = tokenizer.vocab_size + 13
    model = make_model("Qwen2", {"vocab_size": rows})
    model.save_pretrained(tmp_path / "hf")
    copy_tokenizer(tmp_path / "hugging_face", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    settings = yaml.safe_load((tmp_path / "megatron/model.yaml").read_text())["megatron"]
    assert settings["vocab-size"] == rows and settings["tokenizer-type"] == "HuggingFaceTokenizer"
    megatron_to_hf(tmp_path / "megatron", tmp_path / "again", progress=False)
    assert same_bits(weights(tmp_path / "hf"), weights(tmp_path / "again"))

    prefix = write_corpus(tmp_path, ids=tokenizer.vocab_size)
    job = Job(tmp_path, stage={"data-path": str(prefix), "eval-iters": 0})
    job.model = tmp_path / "megatron/model.yaml"
    start = ["--load", tmp_path / "megatron", "--finetune", "--train-iters", 1, "--save", tmp_path / "run"]
    job.run(*start, "--tensor-model-parallel-size", 2, ranks=2)
    first = float(figures(tmp_path / "run")[0][1])
    assert first == pytest.approx(reference_loss(tmp_path / "hf", prefix), abs=1e-5)
    megatron_to_hf(tmp_path / "run", tmp_path / "trained", progress=False)
    assert json.loads((tmp_path / "trained/config.json").read_text())["vocab_size"] == rows
    before, after = weights(tmp_path / "hf"), weights(tmp_path / "trained")
    assert all(after[name].shape == tensor.shape for name, tensor in before.items())
    last = "lm_head.weight"
    assert not torch.equal(before[last][-13:], after[last][-13:])  # transformers' softmax counts these rows too


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("name", CASES)
def test_a_round_trip_is_exact_to_the_bit(world, name):
    folder, _ = world
    megatron_to_hf(folder / name / "megatron", folder / name / "again", progress=False)
    assert same_bits(weights(folder / name / "hf"), weights(folder / name / "again"))


@pytest.mark.parametrize(("layout", "name"), RUN)
def test_outputs_and_gradients_are_those_of_transformers(world, found, layout, name):
    wanted, results = world[1][name], found[layout, name]
    gradients = [key for key in wanted if key.startswith("gradient")]
    gradients = gradients if has_gradients(layout, has_experts(name)) else []
    assert {key for key in results if key.startswith("gradient")} == set(gradients)
    apart = largest(wanted["outputs"], results["outputs"])
    steps = {key: largest(wanted[key], results[key]) for key in gradients}
    worst, where = max((one[::-1] for one in steps.items()), default=(0.0, ""))
    least = min((wanted[key].abs().max() for key in gradients), default=1.0)
    print(f"{name}, {layout}: outputs differ by {apart:.1e}, gradients by {worst:.1e}; the least has {least:.1e}")
    assert apart <= LOGITS and worst <= GRADIENTS, where
    assert wanted["outputs"].std() > 0.1 and least > 10 * GRADIENTS
    assert ("generated" in results) == ("reward" not in name and layout in ("TP 1", "TP 2", "EP 2"))
    if "generated" in results:
        assert torch.equal(wanted["generated"], results["generated"])
        assert torch.equal(results["generated"], results["generated by modules"])
        split = layout == "TP 2" and "one group" in name  # fewer groups of heads than ranks are Megatron's to split
        assert bool(results["usual layers"]) != split


@pytest.mark.parametrize(("name", "control"), [(name, one) for name, some in CONTROLS.items() for one in some])
def test_a_model_without_its_quirk_is_another_one(world, found, name, control):
    apart = largest(world[1][name]["outputs"], found["TP 1", name][f"control: {control}"])
    print(f"{name}, {control}: outputs differ by {apart:.1e}")
    assert apart > DIFFERENT


@pytest.mark.parametrize("layout", ["TP 2", "TP 2 with sequence parallelism"])
def test_gradients_of_norms_that_are_not_added_up_over_the_ranks_differ(world, found, layout):
    name = "qwen3 head size of its own"
    wanted = world[1][name]["gradient of model.layers.0.self_attn.q_norm.weight"]
    assert largest(wanted, found[layout, name]["control: gradient of q_norm on one rank"]) > 100 * GRADIENTS
