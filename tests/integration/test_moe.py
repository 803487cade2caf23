"""Fine-tuning a model with experts: the auxiliary loss that its config.json asks for is transformers', in every layout,
with masked tokens and padding; layouts agree step by step, and a run continues to the digit."""

import numpy as np
import pytest
import torch
from support.checkpoints import weights
from support.dialogues import make_dialogues, make_renderer, write_dialogues
from support.families import EXPERTS, make_model
from support.job import Job, figures
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.datasets.packed_dataset import build_packed_datasets
from megatron_chimed.datasets.sft import SftDataset, SftDatasetConfig
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues

LENGTH, ROWS, COEFFICIENT = 96, 4, 0.5
STAGE = {
    "seq-length": LENGTH, "micro-batch-size": 1, "global-batch-size": ROWS, "split": "80,20,0", "lr": 2e-3,
    "eval-iters": 0, "train-iters": 6,
}  # fmt: skip
MODEL = EXPERTS | {"head_dim": 12, "output_router_logits": True, "router_aux_loss_coef": COEFFICIENT}
ONE_BATCH, ROW_BY_ROW = [list(range(ROWS))], [[row] for row in range(ROWS)]
JOINED = ("--micro-batch-size", ROWS)
EP = ("--expert-model-parallel-size", 2)
TP = ("--tensor-model-parallel-size", 2, "--sequence-parallel")
LAYOUTS = {
    "one rank": (1, 3, ONE_BATCH, JOINED),
    "one layer": (1, 1, ONE_BATCH, JOINED),
    "TP 2 with sequence parallelism": (2, 3, ONE_BATCH, (*JOINED, *TP)),
    "PP 3, computed again": (3, 3, ROW_BY_ROW, ("--pipeline-model-parallel-size", 3, "--recompute-granularity", "full",
                                "--recompute-method", "uniform", "--recompute-num-layers", 1)),
    "EP 2": (2, 3, ROW_BY_ROW, (*EP, "--moe-token-dispatcher-type", "alltoall")),
}  # fmt: skip
"""{name: (ranks, layers, rows of each micro batch, arguments)}."""


@pytest.fixture(scope="module")
def world(tmp_path_factory, one_thread):
    """A folder with packed dialogues, `packed`, and models for them of LAYERS layers, LAYERS/hf and LAYERS/megatron."""
    folder = tmp_path_factory.mktemp("moe")
    renderer = make_renderer("sentencepiece", folder)
    source = write_dialogues(folder / "dialogues.jsonl", make_dialogues(80, most_turns=2, most_words=8))
    options = DialogueRowOptions(sequence_length=LENGTH, progress=False)
    pack_dialogues([str(source)], folder / "packed", renderer, options)
    for layers in (1, 3):
        changes = MODEL | {"num_hidden_layers": layers, "vocab_size": renderer.tokenizer.vocab_size}
        make_model("Qwen3Moe", changes).save_pretrained(folder / f"{layers}/hf")
        hf_to_megatron(folder / f"{layers}/hf", folder / f"{layers}/megatron", progress=False)
    return folder


def make_job(world, save, *arguments, layers: int = 3) -> tuple[Job, list]:
    """A fine-tuning from the converted model of so many layers, and its arguments."""
    job = Job(save.parent, None, STAGE | {"data-path": str(world / "packed")}, name="sft")
    job.model = world / f"{layers}/megatron/model.yaml"
    first_start = ("--load", world / f"{layers}/megatron", "--finetune", "--tokenizer-type", "NullTokenizer")
    return job, [*first_start, "--save", save, *arguments]


def run(world, save, *arguments, ranks: int, layers: int = 3) -> None:
    """Run it to its end."""
    job, words = make_job(world, save, *arguments, layers=layers)
    job.run(*words, ranks=ranks)


def first_rows(world) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """[rows][instances] (tokens, labels with -100) of the first step; padding is left out."""
    blend, vocabulary = ([str(world / "packed")], None), 10**6
    config = SftDatasetConfig(
        random_seed=7, sequence_length=LENGTH, blend=blend, split="80,20,0", vocab_size=vocabulary
    )
    dataset, rows = build_packed_datasets(SftDataset, config, (ROWS, 0, 0))[0], []
    for row in (dataset[number] for number in range(ROWS)):
        filled = int((row["source"] >= 0).sum())
        tokens = row["tokens"][:filled]
        learnt = torch.cat([torch.zeros(1), row["loss_mask"][: filled - 1]]) == 1  # of the token, not of the one before
        lengths = np.diff([*np.flatnonzero(row["position_ids"][:filled] == 0), filled]).tolist()
        rows.append([*zip(tokens.split(lengths), torch.where(learnt, tokens, -100).split(lengths), strict=True)])
    assert any(sum(len(tokens) for tokens, _ in row) < LENGTH for row in rows), "a row has padding"
    return rows


def gradients_by_transformers(world, layers: int, batches: list[list[int]], auxiliary: bool = True) -> dict:
    """Gradients, by the names in a folder, of the mean loss of the target tokens and of the auxiliary loss of each
    layer, averaged over layers and, by target tokens, over micro batches. With one layer it is the model's own loss."""
    model = AutoModelForCausalLM.from_pretrained(world / f"{layers}/hf")
    rows, config, total, targets = first_rows(world), model.config, 0.0, 0
    for batch in batches:
        instances = [instance for row in batch for instance in rows[row]]
        tokens, labels = (torch.nn.utils.rnn.pad_sequence(one, True, -100) for one in zip(*instances, strict=True))
        mask = (tokens >= 0).long()
        out = model(tokens.clamp(min=0), attention_mask=mask, labels=labels)
        count = int((labels[:, 1:] != -100).sum())
        more = [
            load_balancing_loss_func((logits,), config.num_experts, config.num_experts_per_tok, mask)
            for logits in out.router_logits
        ]
        mean = out.loss - COEFFICIENT * out.aux_loss
        ours = mean + COEFFICIENT * sum(more) / layers * auxiliary
        if layers == 1 and auxiliary:
            assert torch.allclose(ours, out.loss)
        total, targets = total + ours * count, targets + count
    (total / targets).backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    model.save_pretrained(world / "gradients")  # as transformers stores experts
    return weights(world / "gradients")


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_with_the_auxiliary_loss_are_those_of_transformers(world, tmp_path, layout):
    ranks, layers, batches, arguments = LAYOUTS[layout]
    plain = ("--optimizer", "sgd", "--sgd-momentum", 0, "--lr", 1, "--weight-decay", 0, "--clip-grad", 0)
    more = (*plain, "--no-save-optim", "--train-iters", 1)  # the weights then move by the gradient
    run(world, tmp_path / "run", *more, *arguments, ranks=ranks, layers=layers)
    megatron_to_hf(tmp_path / "run", tmp_path / "hf", progress=False)
    before, after = weights(world / f"{layers}/hf"), weights(tmp_path / "hf")
    found = {name: before[name] - after[name] for name in before}
    apart = largest(found, gradients_by_transformers(world, layers, batches))
    without = largest(found, gradients_by_transformers(world, layers, batches, auxiliary=False))
    print(f"{layout}: gradients differ by {apart:.1e}; from those without an auxiliary loss by {without:.1e}")
    assert apart <= 1e-5 and without > 1e-2


@pytest.fixture(scope="module")
def one_rank(world, tmp_path_factory):
    """Figures of six steps on one rank."""
    save = tmp_path_factory.mktemp("one_rank") / "run"
    run(world, save, ranks=1)
    return figures(save)


@pytest.mark.parametrize("layout", [TP, (*EP, "--use-distributed-optimizer")], ids=["TP 2", "EP 2"])
def test_layouts_agree_step_by_step_and_a_run_continues_to_the_digit(world, one_rank, tmp_path, layout):
    run(world, tmp_path / "run", *layout, ranks=2)
    found = figures(tmp_path / "run")
    for (_, loss, norm), (_, our_loss, our_norm) in zip(one_rank, found, strict=True):
        assert abs(float(loss) - float(our_loss)) <= 1e-4 and abs(float(norm) / float(our_norm) - 1) <= 1e-4
    assert len(found) == 6
    if layout != TP:
        run(world, tmp_path / "resumed", *layout, "--exit-interval", 3, ranks=2)
        assert len(figures(tmp_path / "resumed")) == 3
        run(world, tmp_path / "resumed", *layout, ranks=2)
        assert figures(tmp_path / "resumed") == found
        job, words = make_job(world, tmp_path / "resumed", "--train-iters", 8)
        assert job.start(*words, ranks=1).wait(120) == 1 and "Traceback" not in job.output()
        assert "saved with --expert-model-parallel-size 2, now 1; keep it, or start a new" in job.output()
