"""From one checkpoint, every parallel layout trains the same model."""

import pytest
from support.job import Job, figures, write_corpus

LAYOUTS = {
    "TP 2": (2, {"tensor-model-parallel-size": 2}),
    "TP 2 with sequence parallelism": (2, {"tensor-model-parallel-size": 2, "sequence-parallel": True}),
    "PP 2": (2, {"pipeline-model-parallel-size": 2, "micro-batch-size": 1}),
    "two data-parallel ranks": (2, {"use-distributed-optimizer": True}),
}


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "packed"])
def one_rank(request, tmp_path_factory):
    """A checkpoint, and 20 steps from it on one rank."""
    folder = tmp_path_factory.mktemp("one_rank")
    corpus = write_corpus(folder)
    job = Job(folder, stage={"data-path": str(corpus)}, chimed={"isolate_documents": request.param})
    job.run("--save", folder / "start", "--train-iters", 1, ranks=1)
    start = ("--load", folder / "start", "--finetune", "--train-iters", 20)
    job.run(*start, "--save", folder / "TP 1", ranks=1)
    return job, start, figures(folder / "TP 1")


def differences(expected, found) -> tuple[list[float], list[float]]:
    """Per iteration: absolute difference of loss, and relative difference of grad norm."""
    pairs = list(zip(expected, found, strict=True))
    losses = [abs(float(a[1]) - float(b[1])) for a, b in pairs]
    return losses, [abs(float(a[2]) / float(b[2]) - 1) for a, b in pairs]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree_with_one_rank(one_rank, layout):
    job, start, expected = one_rank
    ranks, arguments = LAYOUTS[layout]
    words = [word for key, value in arguments.items() for word in (f"--{key}", value)]
    save = job.folder / layout
    job.run(*start, *words, "--save", save, ranks=ranks)
    losses, norms = differences(expected, figures(save))
    print(f"{layout}: loss {losses[0]:.1e} then {max(losses):.1e}, grad norm {norms[0]:.1e} then {max(norms):.1e}")
    assert len(losses) == 20
    assert losses[0] <= 1e-5 and norms[0] <= 1e-5
    assert max(losses) <= 1e-4 and max(norms) <= 1e-4


def test_another_batch_order_does_not_agree(one_rank):
    job, start, expected = one_rank
    job.run(*start[:3], "--save", job.folder / "control", "--seed", 8, "--train-iters", 2, ranks=1)
    losses, _ = differences(expected[:2], figures(job.folder / "control"))
    assert max(losses) > 1e-3
