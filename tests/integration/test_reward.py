"""The reward model in the real trainer: loss and gradients of a naive double loop with transformers, at any layout."""

import math
import random

import pytest
import torch
from support.checkpoints import weights, write_hf
from support.dialogues import make_renderer
from support.first_batch import pair_losses, ranked_answers
from support.job import Job, figures
from support.rankings import make_groups, write_groups
from support.ranks import WITHOUT
from transformers import AutoModelForSequenceClassification

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.verify import verify
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings

LENGTH, ROWS = 128, 4
STAGE = {
    "seq-length": LENGTH, "micro-batch-size": 1, "global-batch-size": ROWS, "split": "80,20,0", "lr": 2e-3,
    "eval-interval": 5, "eval-iters": 2, "train-iters": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with packed/ (ranked answers), and a reward and a language model as hf_KIND and KIND (for Megatron)."""
    folder = tmp_path_factory.mktemp("reward")
    renderer = make_renderer("sentencepiece", folder)
    source = write_groups(folder / "ranked.jsonl", make_groups(150))
    pack_rankings([str(source)], folder / "packed", renderer, RankingRowOptions(LENGTH, pairing="all", progress=False))
    for kind in ("reward", "lm"):
        changes = {"vocab_size": renderer.tokenizer.vocab_size, "num_hidden_layers": 3, "reward": kind == "reward"}
        hf_to_megatron(write_hf(folder / f"hf_{kind}", **changes), folder / kind, progress=False)
    return folder


def make_job(folder, world, kind: str, **stage) -> Job:
    """A reward training from the converted model of a kind."""
    job = Job(folder, None, STAGE | {"data-path": str(world / "packed")} | stage, name="reward")
    job.model = world / kind / "model.yaml"
    return job


def start(world, kind: str) -> list:
    """Arguments of a first start from the converted model."""
    return ["--load", world / kind, "--finetune", "--tokenizer-type", "NullTokenizer"]


@pytest.fixture(scope="module")
def reference(world) -> tuple[list[tuple[float, int]], dict[str, torch.Tensor]]:
    """The first step by transformers, each answer by itself, and a double loop in float64.

    ([(sum of the loss, number of pairs)] of each row, gradient of the step's loss by name).
    """
    model, rows = AutoModelForSequenceClassification.from_pretrained(world / "hf_reward"), []
    for answers in ranked_answers(world / "packed", LENGTH, ROWS):
        losses = pair_losses(model, answers)
        total, count = sum(losses, torch.zeros((), dtype=torch.float64)), len(losses)
        if count:
            total.backward()
        rows.append((total.item(), count))
    pairs = sum(count for _, count in rows)
    return rows, {name: parameter.grad / pairs for name, parameter in model.named_parameters()}


PLAIN = ["--optimizer", "sgd", "--sgd-momentum", 0, "--lr", 1, "--weight-decay", 0, "--clip-grad", 0]
"""With these the weights after one iteration are those before less the gradient."""
UNEVEN = ["--pipeline-model-parallel-size", 2, "--decoder-first-pipeline-num-layers", 1]
"""Three layers on two pipeline stages."""


def one_step(tmp_path, world, *layout, ranks) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients by transformers' names) of the first iteration of the real trainer."""
    job = make_job(tmp_path, world, "reward")
    more = ["--save", tmp_path / "run", "--no-save-optim", "--train-iters", 1, *layout]
    job.run(*start(world, "reward"), *PLAIN, *more, ranks=ranks)
    megatron_to_hf(tmp_path / "run", tmp_path / "hf", progress=False)
    before, after = weights(world / "hf_reward"), weights(tmp_path / "hf")
    assert before.keys() == after.keys()
    loss = float(figures(tmp_path / "run", name="ranking loss")[0][1])
    return loss, {name: before[name] - after[name] for name in before}


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of gradients."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, ["--micro-batch-size", 4]),
        (2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
        (2, ["--tensor-model-parallel-size", 2]),
        (2, UNEVEN),
        (3, ["--pipeline-model-parallel-size", 3]),
        (4, ["--tensor-model-parallel-size", 2, *UNEVEN]),
        (2, []),
    ],
    ids=["rows joined", "TP2-SP", "TP2", "PP2", "PP3", "TP2-PP2", "DP2"],
)
def test_loss_and_every_gradient_are_those_of_a_double_loop_over_transformers_rewards(
    tmp_path, world, reference, ranks, layout
):
    loss, gradients = one_step(tmp_path, world, *layout, ranks=ranks)
    rows, expected = reference
    pairs = sum(count for _, count in rows)
    mean = sum(total for total, _ in rows) / pairs
    difference = largest(gradients, expected)
    print(f"loss {loss:.6f}, by the double loop {mean:.6f}; gradients differ by {difference:.1e} at most")
    assert loss == pytest.approx(mean, abs=1e-5) and difference <= 1e-5
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.01
    assert len({count for _, count in rows}) > 1, "rows, and so data-parallel ranks, have different numbers of pairs"
    naive = sum(total / count for total, count in rows if count) / len(rows)
    assert abs(naive - mean) > 1e-4, "the control: a mean of means would be another number"


def test_a_middle_stage_without_the_boundaries_is_another_loss_with_other_gradients(
    tmp_path, world, reference, monkeypatch
):
    monkeypatch.setenv(WITHOUT, "stages.batch:describe_row@1")
    loss, gradients = one_step(tmp_path, world, "--pipeline-model-parallel-size", 3, ranks=3)
    rows, expected = reference
    mean = sum(total for total, _ in rows) / sum(count for _, count in rows)
    difference = largest(gradients, expected)
    print(f"loss {loss:.6f}, isolated {mean:.6f}; gradients differ by {difference:.1e} at most")
    assert abs(loss - mean) > 1e-4 and difference > 1e-3  # ten and a hundred times the tolerances above


def test_a_reward_model_starts_from_a_language_model_learns_and_resumes_to_the_digit(tmp_path, world):
    arguments = ["--tensor-model-parallel-size", 2, "--sequence-parallel", "--use-distributed-optimizer", "--bf16"]
    arguments += ["--save-interval", 3, "--train-iters", 16, "--lr", 8e-3, *start(world, "lm")]
    job = make_job(tmp_path, world, "lm")
    job.run("--save", tmp_path / "whole", *arguments)
    losses = [float(value) for _, value, _ in figures(tmp_path / "whole", name="ranking loss")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6), "a new head gives every answer the same reward"
    assert sum(losses[-3:]) / 3 < 0.9 * losses[0]
    for name in (
        "best over worst",
        "Kendall's tau",
        "spread of rank 0",
        "calibration error",
        "reward-length correlation",
    ):
        assert figures(tmp_path / "whole", "valid", name), name
    seed = random.randrange(1000)
    draw = random.Random(seed)
    iteration, delay = draw.randint(4, 9), draw.uniform(0, 0.4)
    print(f"killed {delay:.2f} s after iteration {iteration} (seed {seed})")
    job.run_until(iteration, tmp_path / "killed", delay, "--save", tmp_path / "killed", *arguments)
    job.run("--save", tmp_path / "killed", *arguments)
    for split in ("train", "valid"):
        for name in ("ranking loss", "pair accuracy"):
            expected = figures(tmp_path / "whole", split, name)
            assert figures(tmp_path / "killed", split, name) == expected and len(expected) >= 2
    megatron_to_hf(tmp_path / "whole", tmp_path / "hf", progress=False)
    report = verify(tmp_path / "hf", tmp_path / "whole", tensor_parallel=2)
    print(f"rewards differ by {report.largest:.1e} at most, the control's by {report.control:.1e}")
    assert report.passed and report.largest <= 1e-4
    kept = weights(tmp_path / "hf")
    assert kept["score.weight"].dtype == torch.float32 and kept["model.norm.weight"].dtype == torch.bfloat16
    assert "lm_head.weight" not in kept


def test_an_evaluation_counts_every_question_once_however_many_rows_it_asks_for(tmp_path, world):
    found = []
    rows = len(PackedRows(world / "packed")) // 5 + 1  # a fifth, however it is rounded
    for iterations in (-(-rows // ROWS), rows // ROWS + 3):
        save = tmp_path / str(iterations)
        job = make_job(tmp_path, world, "reward", **{"split": "60,20,20", "eval-iters": iterations, "eval-interval": 1})
        job.run(*start(world, "reward"), "--save", save, "--train-iters", 1, ranks=1)
        names = ("ranking loss", "pair accuracy", "top-1", "Kendall's tau", "reward of rank 0", "calibration error")
        values = [figures(save, split, name)[-1][1] for split in ("valid", "test") for name in names]
        found.append([float(value) for value in values])
    assert found[0] == pytest.approx(found[1], abs=1e-6) and len(set(found[0])) > 8


@pytest.mark.parametrize(
    ("stage", "kind", "words", "message"),
    [
        ("sft", "reward", ["--finetune"], "missing output_layer.weight; unused reward_head.weight"),
        ("reward", "lm", [], "missing reward_head.weight; unused output_layer.weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path, world, stage, kind, words, message):
    job = make_job(tmp_path, world, kind)
    job.name = stage
    process = job.start("--load", world / kind, *words, "--tokenizer-type", "NullTokenizer", ranks=1)
    assert process.wait(120) == 1
    assert message in job.output()
