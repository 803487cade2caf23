"""Fine-tuning on packed rows: the loss of its instances apart, at any layout; it learns, and resumes to the digit."""

import dataclasses
import random
from collections import Counter

import pytest
import torch
from support.checkpoints import weights, write_hf
from support.dialogues import make_dialogues, make_renderer, write_dialogues
from support.first_batch import instances, target_losses
from support.job import Job, figures
from support.ranks import WITHOUT
from transformers import AutoModelForCausalLM

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.datasets.packed_dataset import build_packed_datasets
from megatron_chimed.datasets.sft import SftDataset, SftDatasetConfig
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.stages.losses import response_metrics

LENGTH, ROWS = 128, 4
STAGE = {
    "seq-length": LENGTH, "micro-batch-size": 1, "global-batch-size": ROWS, "split": "80,20,0", "lr": 2e-3,
    "eval-interval": 5, "eval-iters": 2, "train-iters": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(packed folder, Hugging Face folder, Megatron folder): dialogues of three sources and a model for them."""
    folder = tmp_path_factory.mktemp("sft")
    renderer = make_renderer("sentencepiece", folder)
    source = write_dialogues(folder / "dialogues.jsonl", make_dialogues(300, most_turns=3, most_words=8))
    options = DialogueRowOptions(sequence_length=LENGTH, progress=False)
    pack_dialogues([str(source)], folder / "packed", renderer, options)
    hf = write_hf(folder / "hf", vocab_size=renderer.tokenizer.vocab_size, num_hidden_layers=3)
    hf_to_megatron(hf, folder / "megatron", progress=False)
    return folder / "packed", hf, folder / "megatron"


def make_job(folder, world, model=None, chimed=None, **stage) -> Job:
    """A fine-tuning of the converted model."""
    job = Job(folder, model, STAGE | {"data-path": str(world[0])} | stage, chimed, name="sft")
    job.model = world[2] / "model.yaml"
    return job


def start(world) -> list:
    """Arguments of a first start from the converted model."""
    return ["--load", world[2], "--finetune", "--tokenizer-type", "NullTokenizer"]


def data_config(world, split: str, seed: int = 7) -> SftDatasetConfig:
    """Settings of datasets over the packed folder."""
    blend = [str(world[0])], None
    return SftDatasetConfig(random_seed=seed, sequence_length=LENGTH, blend=blend, split=split, vocab_size=10**6)


@pytest.fixture(scope="module")
def reference(world) -> tuple[list[tuple[float, int]], dict[str, torch.Tensor]]:
    """The first step by transformers: LlamaForCausalLM's own loss with labels of -100, each instance by itself.

    ([(mean loss, number of target tokens)] of each row, gradient of the step's loss by name).
    """
    model, rows = AutoModelForCausalLM.from_pretrained(world[1]), []
    for row in instances(world[0], LENGTH, ROWS):
        total, count = 0.0, 0
        for summed, number in target_losses(model, row):
            summed.backward()
            total, count = total + summed.item(), count + number
        rows.append((total / count, count))
    targets = sum(count for _, count in rows)
    return rows, {name: parameter.grad / targets for name, parameter in model.named_parameters()}


PLAIN = ["--optimizer", "sgd", "--sgd-momentum", 0, "--lr", 1, "--weight-decay", 0, "--clip-grad", 0]
"""With these the weights after one iteration are those before less the gradient."""
UNEVEN = ["--pipeline-model-parallel-size", 2, "--decoder-first-pipeline-num-layers", 1]
"""Three layers on two pipeline stages."""


def one_step(job, world, save, *layout, ranks) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients by transformers' names) of the first iteration of the real trainer."""
    job.run(*start(world), *PLAIN, "--save", save, "--no-save-optim", "--train-iters", 1, *layout, ranks=ranks)
    megatron_to_hf(save, save / "hf", progress=False)
    before, after = weights(world[1]), weights(save / "hf")
    return float(figures(save)[0][1]), {name: before[name] - after[name] for name in before}


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of gradients."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, []),
        (1, ["--micro-batch-size", 4]),
        (2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
        (2, UNEVEN),
        (3, ["--pipeline-model-parallel-size", 3]),
        (4, ["--tensor-model-parallel-size", 2, *UNEVEN]),
        (2, []),
    ],
    ids=["TP1", "rows joined", "TP2-SP", "PP2", "PP3", "TP2-PP2", "DP2"],
)
def test_loss_and_every_gradient_are_those_of_transformers_on_each_instance_apart(
    tmp_path, world, reference, ranks, layout
):
    loss, gradients = one_step(make_job(tmp_path, world), world, tmp_path / "run", *layout, ranks=ranks)
    rows, expected = reference
    targets = sum(count for _, count in rows)
    mean = sum(mean * count for mean, count in rows) / targets
    difference = largest(gradients, expected)
    print(f"loss {loss:.6f}, by transformers {mean:.6f}; gradients differ by {difference:.1e} at most")
    assert loss == pytest.approx(mean, abs=1e-5) and difference <= 1e-5
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.01
    naive = sum(mean for mean, _ in rows) / len(rows)
    assert abs(naive - mean) > 1e-4, "the control: a mean of means would be another number"
    share = float(figures(tmp_path / "run", name="targets")[0][1])
    assert share == pytest.approx(targets / (ROWS * LENGTH), abs=1e-6)


def test_attention_across_instances_is_another_loss_with_other_gradients(tmp_path, world, reference):
    job = make_job(tmp_path, world, chimed={"isolate_instances": False})
    loss, gradients = one_step(job, world, tmp_path / "run", ranks=1)
    rows, expected = reference
    isolated = sum(mean * count for mean, count in rows) / sum(count for _, count in rows)
    assert abs(loss - isolated) > 1e-3  # a hundred times the tolerance above
    assert largest(gradients, expected) > 1e-3


def test_a_middle_stage_without_the_boundaries_is_another_loss_with_other_gradients(
    tmp_path, world, reference, monkeypatch
):
    """The control of PP3 above: ranks 0 and 2 know the boundaries, and nothing but the figures tells."""
    monkeypatch.setenv(WITHOUT, "stages.batch:describe_row@1")
    layout = ["--pipeline-model-parallel-size", 3]
    loss, gradients = one_step(make_job(tmp_path, world), world, tmp_path / "run", *layout, ranks=3)
    rows, expected = reference
    isolated = sum(mean * count for mean, count in rows) / sum(count for _, count in rows)
    difference = largest(gradients, expected)
    print(f"loss {loss:.6f}, isolated {isolated:.6f}; gradients differ by {difference:.1e} at most")
    assert abs(loss - isolated) > 1e-4 and difference > 1e-3  # ten and a hundred times the tolerances above


def test_answers_of_held_out_dialogues_are_learnt_and_each_source_is_reported(tmp_path, world):
    job = make_job(tmp_path, world)
    output = job.run(
        *start(world), "--save", tmp_path / "run", "--train-iters", 24, "--tensor-model-parallel-size", 2,
        "--use-distributed-optimizer", "--eval-interval", 8,
    )  # fmt: skip
    assert "targets/s" in output
    losses = [float(value) for _, value, _ in figures(tmp_path / "run", "valid")]
    assert losses[-1] < 0.9 * losses[0]
    for name in ("lm loss chimed", "lm loss mc", "lm loss safety", "response accuracy", "fill"):
        assert figures(tmp_path / "run", "valid", name), name
    fills = [float(value) for _, value, _ in figures(tmp_path / "run", name="fill")]
    assert sum(fills) / len(fills) > 0.9 and max(fills) <= 1
    accuracy = [float(value) for _, value, _ in figures(tmp_path / "run", "valid", "response accuracy")]
    assert accuracy[-1] > accuracy[0]


def test_a_loss_in_chunks_gives_the_same_figures_and_predictions(tmp_path, world):
    names, found = ("lm loss", "response accuracy", "lm loss mc"), []
    for chunk in (0, 50):
        save = tmp_path / str(chunk) / "run"
        job = make_job(tmp_path / str(chunk), world, chimed={"cross_entropy_chunk_tokens": chunk})
        layout = ["--tensor-model-parallel-size", 2, "--sequence-parallel", "--train-iters", 6, "--eval-interval", 3]
        job.run(*start(world), "--save", save, *layout)
        found.append(
            [float(row[1]) for split in ("train", "valid") for name in names for row in figures(save, split, name)]
        )
    assert found[1] == pytest.approx(found[0], rel=1e-5) and len(found[0]) >= 6 + 6 + 2 * 3


def test_a_killed_fine_tuning_continues_to_the_same_figures(tmp_path, world):
    arguments = ["--tensor-model-parallel-size", 2, "--use-distributed-optimizer", "--bf16", "--save-interval", 3]
    arguments += ["--attention-dropout", 0.1, "--hidden-dropout", 0.1, *start(world)]
    job = make_job(tmp_path, world)
    job.run("--save", tmp_path / "whole", *arguments)
    seed = random.randrange(1000)
    draw = random.Random(seed)
    iteration, delay = draw.randint(4, 9), draw.uniform(0, 0.4)
    print(f"killed {delay:.2f} s after iteration {iteration} (seed {seed})")
    job.run_until(iteration, tmp_path / "killed", delay, "--save", tmp_path / "killed", *arguments)
    job.run("--save", tmp_path / "killed", *arguments)
    for split in ("train", "valid"):
        for name in ("lm loss", "response accuracy"):
            expected = figures(tmp_path / "whole", split, name)
            assert figures(tmp_path / "killed", split, name) == expected and len(expected) >= 2


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own(world):
    def rows(count, seed=7):
        dataset = build_packed_datasets(SftDataset, data_config(world, "1,0,0", seed), (count, 0, 0))[0]
        return [tuple(dataset[n]["tokens"].tolist()) for n in range(count)]

    size = len(PackedRows(world[0]))
    two = rows(2 * size)
    first, second = two[:size], two[size:]
    assert Counter(first) == Counter(second) and len(set(first)) == size and first != second
    assert rows(size + 3) == two[: size + 3], "a longer run goes on where a shorter one ends"
    assert rows(size, seed=8) != first


@pytest.mark.parametrize("split", [1, 2], ids=["valid", "test"])
def test_an_evaluation_larger_than_its_set_counts_every_row_once(world, split):
    config = data_config(world, "80,10,10")

    def evaluations(samples, extra=(), number=2):
        """The samples of evaluations, and what each counts: learnt tokens, filled positions, positions."""
        folders = dataclasses.replace(config, blend=([*config.blend[0], *extra], None))
        dataset = build_packed_datasets(SftDataset, folders, (0, 2 * samples, samples))[split]
        every = [[dataset[n + samples * e] for n in range(samples)] for e in range(number)]
        return every, [torch.stack([counted(sample) for sample in one]).sum(0).tolist() for one in every]

    def counted(sample):
        report = response_metrics(*(sample[name] for name in ("labels", "loss_mask", "source")), None, (), zeros)
        return torch.cat([report["targets"][:1], report["fill"]])

    zeros = torch.zeros(LENGTH)
    size = len(PackedRows(world[0])) // 10
    (first, second), exact = evaluations(size)
    (more, again), counts = evaluations(size + 5)
    assert counts == exact and exact[0] == exact[1] and exact[0][2] == size * LENGTH
    rows = [[tuple(sample["tokens"].tolist()) for sample in one[:size]] for one in (first, second, more, again)]
    assert rows[0] == rows[2] and rows[1] == rows[3] and Counter(rows[0]) == Counter(rows[1]) and rows[0] != rows[1]
    assert not any(sample["loss_mask"].any() for one in (more, again) for sample in one[size:])
    assert evaluations(size - 5)[1][0][2] == (size - 5) * LENGTH, "a smaller one has no blank rows"
    mixture = evaluations(size + 5, config.blend[0], number=1)
    assert mixture[1][0][2] == (size + 5) * LENGTH, "nor has a mixture, which has no end"


def test_a_single_row_is_trained_on_and_not_evaluated(tmp_path, world):
    renderer = make_renderer("sentencepiece", tmp_path)
    source = write_dialogues(tmp_path / "dialogues.jsonl", make_dialogues(2, most_turns=1, most_words=3))
    pack_dialogues([str(source)], tmp_path / "packed", renderer, DialogueRowOptions(LENGTH, progress=False))
    few = {"split": "98,2,0", "train-iters": 2, "eval-interval": 1, "global-batch-size": 2}
    output = make_job(tmp_path, (tmp_path / "packed", *world[1:]), **few).run(*start(world), ranks=1)
    said, trained = output.index("1 rows, none for its valid split"), output.index("iteration        1/")
    assert said < trained and output.count("none for its valid split") == 1 and "iteration        2/" in output
