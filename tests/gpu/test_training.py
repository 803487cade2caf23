"""The real trainer on one GPU against itself on the CPU, from one checkpoint: dense and packed; and a resumed run.

Tolerances. In bf16 the losses of the two may differ by LOSS and the gradient norms by NORM (relative): four times what
was seen over these steps between bf16 and float32 on a CPU (1.1e-3 and 3.6e-3). In float32, where TF32 is off, by 1e-4
and 1e-3: attention that leaves an instance changes the loss by forty times that.
"""

import pytest
from support.checkpoints import write_hf
from support.dialogues import make_dialogues, make_renderer, write_dialogues
from support.forked import ON_CPU
from support.job import ON_GPU, LaunchedJob, figures, write_corpus

from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues

LENGTH, STEPS = 128, 5
LOSS, NORM = 5e-3, 1.5e-2
PRECISIONS = {"bf16": (["--bf16", "--use-distributed-optimizer"], LOSS, NORM), "float32": ([], 1e-4, 1e-3)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(packed dialogues, corpus, model YAML and checkpoint of one small model)."""
    folder = tmp_path_factory.mktemp("gpu")
    renderer = make_renderer("sentencepiece", folder)
    source = write_dialogues(folder / "dialogues.jsonl", make_dialogues(300, most_turns=3, most_words=8))
    pack_dialogues(
        [str(source)], folder / "packed", renderer, DialogueRowOptions(sequence_length=LENGTH, progress=False)
    )
    size = renderer.tokenizer.vocab_size
    hf = write_hf(folder / "hf", vocab_size=size, num_hidden_layers=2)
    hf_to_megatron(hf, folder / "megatron", progress=False)
    return {"sft": folder / "packed", "pretrain": write_corpus(folder, ids=size), "model": folder / "megatron"}


def losses(folder, world, environment, stage, precision, *more, chimed=None) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    settings = {"data-path": str(world[stage]), "seq-length": LENGTH, "train-iters": STEPS}
    job = LaunchedJob(folder, stage=settings, chimed=chimed, name=stage)
    job.environment = environment
    job.model = world["model"] / "model.yaml"
    start = ["--load", world["model"], "--finetune", "--tokenizer-type", "NullTokenizer"]
    output = job.run(*start, *PRECISIONS[precision][0], *more, "--save", folder / "run", ranks=1)
    device = "CPU" if environment is ON_CPU else "NVIDIA"
    assert f"{stage} on 1 x {device}" in output
    return [(float(loss), float(norm)) for _, loss, norm in figures(folder / "run")]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_training_on_a_gpu_is_that_on_the_cpu(tmp_path, world, stage, precision):
    expected = losses(tmp_path / "cpu", world, ON_CPU, stage, precision)
    kernels = ("auto", "sdpa") if (stage, precision) == ("sft", "bf16") else ("auto",)
    for kernel in kernels:
        found = losses(tmp_path / kernel, world, ON_GPU, stage, precision, chimed={"attention": kernel})
        assert len(found) == len(expected) == STEPS
        apart = [abs(a[0] - b[0]) for a, b in zip(expected, found, strict=True)]
        norms = [abs(a[1] / b[1] - 1) for a, b in zip(expected, found, strict=True)]
        print(f"{stage}, {precision}, {kernel}: losses differ by {max(apart):.1e}, norms by {max(norms):.1e}")
        assert max(apart) <= PRECISIONS[precision][1] and max(norms) <= PRECISIONS[precision][2]
    steps = [abs(a[0] - b[0]) for a, b in zip(expected, expected[1:], strict=False)]
    assert min(steps) > LOSS, "the control: the losses of neighbouring steps differ by more"


def test_a_resumed_run_on_a_gpu_has_the_same_figures(tmp_path, world):
    """With dropout and sharded moments; the instances are short, so that no kernel adds up in an order of its own."""
    more = ("--attention-dropout", 0.1, "--hidden-dropout", 0.1, "--save-interval", 2)
    whole = losses(tmp_path / "whole", world, ON_GPU, "sft", "bf16", *more)
    first = losses(tmp_path / "parts", world, ON_GPU, "sft", "bf16", *more, "--train-iters", 2)
    both = losses(tmp_path / "parts", world, ON_GPU, "sft", "bf16", *more)
    assert first == whole[:2] and both == whole
