"""Preference optimization in the real trainer: the loss and gradients of a double loop over transformers, a reference
of this very model, nothing to learn from random ranks, exact resume."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.checkpoints import weights, write_hf
from support.dialogues import make_renderer
from support.first_batch import log_p
from support.forked import ON_CPU
from support.job import Job, figures
from support.paths import ROOT
from support.rankings import make_groups, whole_answers, write_groups
from transformers import AutoModelForCausalLM

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.lora import hash_model
from megatron_chimed.datasets.packed_dataset import PackedDatasetConfig, build_packed_datasets
from megatron_chimed.datasets.preferences import PreferenceDataset
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings
from megatron_chimed.packing.reference import compute_reference, pairs_of
from megatron_chimed.stages.losses import ranked_pairs
from megatron_chimed.stages.preferences import plackett_luce, questions_of

LENGTH, ROWS = 128, 4
STAGE = {
    "seq-length": LENGTH, "micro-batch-size": 1, "global-batch-size": ROWS, "split": "80,20,0", "lr": 2e-3,
    "eval-interval": 8, "eval-iters": 2, "train-iters": 16,
}  # fmt: skip
UNEVEN = ["--pipeline-model-parallel-size", 2, "--decoder-first-pipeline-num-layers", 1]
PLAIN = ["--optimizer", "sgd", "--sgd-momentum", 0, "--lr", 1, "--weight-decay", 0, "--clip-grad", 0]
START = ["--finetune", "--tokenizer-type", "NullTokenizer"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with a language model (hf, and lm for Megatron), and ranked answers: packed/, whose reference is the
    model's with noise, so that the loss is not log 2; exact/ with the model's own; true/ and shuffled/, without one."""
    folder = tmp_path_factory.mktemp("dpo")
    renderer = make_renderer("sentencepiece", folder)
    source = write_groups(folder / "ranked.jsonl", make_groups(150))
    for name, shuffled in (("packed", False), ("exact", False), ("true", False), ("shuffled", True)):
        options = RankingRowOptions(LENGTH, pairing="all", progress=False, shuffle_ranks=shuffled)
        pack_rankings([str(source)], folder / name, renderer, options)
    changes = {"vocab_size": renderer.tokenizer.vocab_size, "num_hidden_layers": 3}
    hf_to_megatron(write_hf(folder / "hf", **changes), folder / "lm", progress=False)
    model, draw = AutoModelForCausalLM.from_pretrained(folder / "hf"), random.Random(0)

    def noisy(pairs):
        return [log_p(model, prompt, answer).item() + draw.gauss(0, 3) for prompt, answer in pairs]

    def exact(pairs):
        return [log_p(model, prompt, answer).item() for prompt, answer in pairs]

    for name, values in (("packed", noisy), ("exact", exact)):
        with torch.no_grad():
            compute_reference(PackedRows(folder / name), hash_model(folder / "lm"), {}, values, lambda done: None)
    return folder


def make_job(folder, world, data: str, chimed: dict | None = None, **stage) -> Job:
    """A training from the converted model on one of the packed folders."""
    job = Job(folder, None, STAGE | {"data-path": str(world / data), "load": str(world / "lm")} | stage, chimed, "dpo")
    job.model = world / "lm" / "model.yaml"
    return job


def first_batch(world) -> list[list[tuple[list[int], list[int], float, int, int]]]:
    """[rows][answers] (prompt, answer, reference, rank, group) of the first step, straight from the packed files."""
    config = PackedDatasetConfig(
        random_seed=7, sequence_length=LENGTH, blend=([str(world / "packed")], None), split="80,20,0", vocab_size=10**6
    )
    dataset = build_packed_datasets(PreferenceDataset, config, (ROWS, 0, 0))[0]
    packed, values, batch = PackedRows(world / "packed"), np.load(world / "packed/reference.npy"), []
    for number in range(ROWS):
        row = dataset.place(number)[1]
        here, arrays = packed.segments(row), packed.arrays
        rest = [
            values[here.start : here.stop],
            *(arrays[f"segment_{n}"][here.start : here.stop] for n in ("rank", "group")),
        ]
        batch.append([(*pair, *map(float, more)) for pair, *more in zip(pairs_of(packed, row), *rest, strict=True)])
    return batch


def expected_step(world, settings: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """(mean loss, gradients) of the first step by transformers, each answer by itself, question by question."""
    model = AutoModelForCausalLM.from_pretrained(world / "hf")
    total, parts = 0.0, 0
    for answers in first_batch(world):
        log_ps = torch.stack([log_p(model, prompt, answer) for prompt, answer, *_ in answers])
        reference, rank, group = (
            torch.tensor([one[place] for one in answers], dtype=torch.float64) for place in (2, 3, 4)
        )
        rank, group, beta = rank.long(), group.long(), settings.get("beta", 0.1)
        length = torch.tensor([len(answer) for _, answer, *_ in answers])
        change = (log_ps - reference) / (length if settings.get("length_normalized") else 1)
        row, count = torch.zeros((), dtype=torch.float64), 0
        if settings.get("loss") == "plackett_luce":
            found = [plackett_luce(beta * change, levels) for levels in questions_of(rank, group)]
            row, count = sum(found), len(found)
        else:
            smoothing, sft = settings.get("label_smoothing", 0.0), settings.get("sft_coefficient", 0.0)
            for i, j in zip(*ranked_pairs(rank, group, "all"), strict=True):
                logits = beta * (change[i] - change[j])
                row = row - torch.nn.functional.logsigmoid(logits) * (1 - smoothing)
                row = row - torch.nn.functional.logsigmoid(-logits) * smoothing
                row = row - sft * log_ps[i] / length[i]
                count += 1
        row.backward()
        total, parts = total + row.item(), parts + count
    return total / parts, {name: parameter.grad / parts for name, parameter in model.named_parameters()}


def one_step(
    tmp_path, world, settings: dict, *layout, ranks: int, name="packed"
) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients by transformers' names) of the first iteration of the real trainer."""
    job = make_job(tmp_path, world, name, settings)
    more = ["--save", tmp_path / "run", "--no-save-optim", "--train-iters", 1, *layout]
    job.run(*START, *PLAIN, *more, ranks=ranks)
    megatron_to_hf(tmp_path / "run", tmp_path / "hf", progress=False)
    before, after = weights(world / "hf"), weights(tmp_path / "hf")
    loss = float(figures(tmp_path / "run", name="preference loss")[0][1])
    return loss, {name: before[name] - after[name] for name in before}


ALL = {"beta": 0.3, "label_smoothing": 0.1, "length_normalized": True, "sft_coefficient": 0.2}


@pytest.mark.parametrize(
    ("settings", "ranks", "layout"),
    [
        ({}, 1, ["--micro-batch-size", 4]),
        (ALL, 2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
        ({"loss": "plackett_luce"}, 2, UNEVEN),
        ({"beta": 0.5}, 2, []),
    ],
    ids=["rows joined", "TP2-SP, all options", "PP2, Plackett-Luce", "DP2"],
)
def test_loss_and_every_gradient_are_those_of_a_double_loop_over_transformers(tmp_path, world, settings, ranks, layout):
    loss, gradients = one_step(tmp_path, world, settings, *layout, ranks=ranks)
    mean, expected = expected_step(world, settings)
    assert gradients.keys() == expected.keys()
    difference = max((gradients[name] - expected[name]).abs().max().item() for name in expected)
    print(f"loss {loss:.6f}, by the double loop {mean:.6f}; gradients differ by {difference:.1e} at most")
    assert loss == pytest.approx(mean, abs=1e-5) and difference <= 1e-5
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.01
    assert abs(mean - np.log(2)) > 0.01, "the control: the reference says something"


def reference(*words: object) -> subprocess.CompletedProcess:
    """Run the command that computes it."""
    command = [sys.executable, ROOT / "tools/compute_reference.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | ON_CPU)


def test_the_reference_is_computed_once_of_the_model_and_the_run_begins_at_log_2(tmp_path, world):
    flags = ["--packed", world / "true", world / "shuffled", "--model", f"megatron:{world / 'lm'}"]
    done = reference(*flags, "--tensor-parallel", 2)
    assert done.returncode == 0 and done.stdout.count("computed; mean log p") == 2, done.stderr
    again = reference(*flags)
    assert again.stdout.count("up to date") == 2
    model = AutoModelForCausalLM.from_pretrained(world / "hf")
    packed, values = PackedRows(world / "true"), np.load(world / "true/reference.npy")
    with torch.no_grad():
        expected = [log_p(model, *pair).item() for row in range(len(packed)) for pair in pairs_of(packed, row)]
    assert values == pytest.approx(np.array(expected), abs=1e-4)
    assert len(whole_answers(packed)) > 100
    arguments = [*START, "--tensor-model-parallel-size", 2, "--use-distributed-optimizer", "--save-interval", 3]
    runs = {}
    for data in ("true", "shuffled"):
        make_job(tmp_path / data, world, data).run(*arguments, "--save", tmp_path / data / "run")
        losses = [float(value) for _, value, _ in figures(tmp_path / data / "run", name="preference loss")]
        accuracy = [float(value) for _, value, _ in figures(tmp_path / data / "run", "valid", "pair accuracy")]
        assert losses[0] == pytest.approx(np.log(2), abs=1e-5) and losses[-1] < losses[0]
        runs[data] = accuracy[-1]
    assert runs["true"] > 0.85 and 0.3 < runs["shuffled"] < 0.7, runs
    for name in ("best over worst", "Kendall's tau", "accuracy 0>1", "reward-length correlation", "KL estimate"):
        assert figures(tmp_path / "true/run", "valid", name), name
    job = make_job(tmp_path / "killed", world, "true")
    job.run_until(5, tmp_path / "killed/run", 0.1, *arguments, "--save", tmp_path / "killed/run")
    job.run(*arguments, "--save", tmp_path / "killed/run")
    for split in ("train", "valid"):
        for name in ("preference loss", "pair accuracy", "log p of better"):
            expected = figures(tmp_path / "true/run", split, name)
            assert figures(tmp_path / "killed/run", split, name) == expected and len(expected) >= 2
    other = make_job(tmp_path / "other", world, "true", load=str(tmp_path / "true/run"))
    process = other.start(*START, "--save", tmp_path / "other/run", ranks=1)
    assert process.wait(120) == 1
    assert "the data's reference is of the model" in other.output()


def test_adapters_go_by_the_reference_of_their_base_and_then_by_their_own(tmp_path, world):
    lora = {"lora": {"rank": 4, "alpha": 8}}
    job = make_job(tmp_path / "job", world, "exact", lora)
    job.run(*START, "--save", tmp_path / "run", "--train-iters", 6, "--lr", 1e-2, ranks=1)
    losses = [float(value) for _, value, _ in figures(tmp_path / "run", name="preference loss")]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5) and losses[-1] < losses[0]
    job = make_job(tmp_path / "again", world, "exact", lora, load=str(tmp_path / "run"))
    assert job.start(*START, "--save", tmp_path / "other", ranks=1).wait(120) == 1
    assert "the data's reference is of the model" in job.output()


def test_rows_without_a_reference_or_with_that_of_other_rows_are_refused(tmp_path, world):
    renderer = make_renderer("sentencepiece", tmp_path)
    for number in (40, 41):
        source = write_groups(tmp_path / "ranked.jsonl", make_groups(number))
        pack_rankings([str(source)], tmp_path / str(number), renderer, RankingRowOptions(LENGTH, progress=False))
    (tmp_path / "packed").symlink_to(tmp_path / "40")
    job = make_job(tmp_path / "job", tmp_path, "packed", load=str(world / "lm"))
    job.model = world / "lm" / "model.yaml"
    assert job.start(*START, ranks=1).wait(120) == 1
    assert "has no reference.json; compute it with chimed reference --packed" in job.output()
    compute_reference(PackedRows(tmp_path / "41"), "0" * 64, {}, lambda pairs: [-1.0] * len(pairs), lambda done: None)
    for name in ("reference.json", "reference.npy"):
        (tmp_path / "40" / name).write_bytes((tmp_path / "41" / name).read_bytes())
    assert job.start(*START, ranks=1).wait(120) == 1
    assert "reference.json: is of other rows" in job.output()
