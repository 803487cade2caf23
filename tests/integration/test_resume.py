"""A killed and restarted training is the uninterrupted one, to the last digit."""

import random

import pytest
from support.job import Job, figures, write_corpus

from megatron_chimed.training.run_record import read_attempts

# What makes resuming hard: dropout (RNG states), bf16 with float32 main weights, sharded Adam moments.
HARD = {"bf16": True, "use-distributed-optimizer": True, "tensor-model-parallel-size": 2, "save-interval": 3}
DROPOUT = {"attention-dropout": 0.1, "hidden-dropout": 0.1}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    corpus = write_corpus(folder)
    job = Job(folder, DROPOUT, HARD | {"data-path": str(corpus)}, {"isolate_documents": True})
    job.run("--save", folder / "run")
    return corpus, folder / "run"


def test_a_job_killed_at_a_random_moment_continues_to_the_same_figures(uninterrupted, tmp_path):
    corpus, expected = uninterrupted
    seed = random.randrange(1000)
    moment = random.Random(seed)
    iteration, delay = moment.randint(4, 9), moment.uniform(0, 0.4)
    print(f"killed {delay:.2f} s after iteration {iteration} (seed {seed})")
    job = Job(tmp_path, DROPOUT, HARD | {"data-path": str(corpus)}, {"isolate_documents": True})
    save = tmp_path / "run"
    job.run_until(iteration, save, delay, "--save", save)
    killed_at = int(figures(save)[-1][0])
    job.run("--save", save)
    assert figures(save) == figures(expected)
    assert figures(save, "valid") == figures(expected, "valid")
    assert iteration <= killed_at <= 10


def test_a_longer_run_continues_the_shorter_one(uninterrupted, tmp_path):
    corpus, expected = uninterrupted
    job = Job(tmp_path, DROPOUT, HARD | {"data-path": str(corpus)}, {"isolate_documents": True})
    job.run("--save", tmp_path / "run", "--train-iters", 5)
    assert len(figures(tmp_path / "run")) == 5
    job.run("--save", tmp_path / "run")
    assert figures(tmp_path / "run") == figures(expected)
    attempts = read_attempts(tmp_path / "run")
    assert [(one["iterations"], one["outcome"]) for one in attempts] == [([0, 5], "finished"), ([5, 10], "finished")]
    assert [one["path"] for one in attempts[1]["data"]] == [str(corpus)] and attempts[1]["data"][0]["sha256"]
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("final valid lm loss") == 2 and log.count("pretrain on 2 x CPU (TP 2") == 2


def test_a_longer_run_follows_the_same_cosine_when_its_length_is_given(tmp_path):
    stage = {"data-path": str(write_corpus(tmp_path)), "lr-decay-style": "cosine", "lr-decay-iters": 6}
    job = Job(tmp_path, stage=stage)
    job.run("--save", tmp_path / "whole", "--train-iters", 4, ranks=1)
    job.run("--save", tmp_path / "parts", "--train-iters", 2, ranks=1)
    job.run("--save", tmp_path / "parts", "--train-iters", 4, ranks=1)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_another_seed_gives_other_figures(uninterrupted, tmp_path):
    corpus, expected = uninterrupted
    job = Job(tmp_path, DROPOUT, HARD | {"data-path": str(corpus)}, {"isolate_documents": True})
    job.run("--save", tmp_path / "run", "--train-iters", 2, "--seed", 8)
    assert figures(tmp_path / "run")[1] != figures(expected)[1]


def test_a_finished_run_says_so_and_changes_nothing(uninterrupted):
    corpus, folder = uninterrupted
    before = figures(folder)
    job = Job(folder.parent, DROPOUT, HARD | {"data-path": str(corpus)}, {"isolate_documents": True})
    assert "is trained to iteration 10" in job.run("--save", folder)
    assert figures(folder) == before


@pytest.mark.parametrize("arguments", [(), ("bf16",), ("use-distributed-optimizer",)], ids=str)
def test_every_precision_and_optimizer_resumes_exactly(tmp_path, arguments):
    """bf16 with the distributed optimizer is the case of the tests above."""
    stage = {"data-path": str(write_corpus(tmp_path)), **dict.fromkeys(arguments, True)}
    job = Job(tmp_path, DROPOUT, stage)
    job.run("--save", tmp_path / "whole", "--train-iters", 4, ranks=1)
    job.run("--save", tmp_path / "parts", "--train-iters", 2, ranks=1)
    job.run("--save", tmp_path / "parts", "--train-iters", 4, ranks=1)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_two_data_parallel_ranks_resume_each_with_its_own_dropout(tmp_path):
    """Packed rows draw one mask per document, so that the ranks' generators move apart."""
    stage = {"data-path": str(write_corpus(tmp_path)), "use-distributed-optimizer": True}
    job = Job(tmp_path, DROPOUT, stage, {"isolate_documents": True})
    job.run("--save", tmp_path / "whole", "--train-iters", 4)
    job.run("--save", tmp_path / "parts", "--train-iters", 2)
    job.run("--save", tmp_path / "parts", "--train-iters", 4)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
