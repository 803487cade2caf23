"""All else that a cluster runs, on a real Slurm of two nodes: corpora, rounds, the pipeline, servers, allocations.

The first line of each test is its row of the table in docs/slurm.md.
"""

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import rejection_loop
from support.corpora import files_of, make_texts, write_model, write_rows
from support.dialogues import make_dialogues, write_dialogues
from support.exam_files import page, write_lines
from support.exam_hf import write_answering_hf
from support.paths import ROOT
from support.rankings import make_groups, write_groups
from support.slurm_cluster import until
from support.slurm_training import SCRIPT, WITHOUT_GPUS, Training, job_environment

from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.jsonl import read_json

SBATCH = ["sbatch", "--wait", "--parsable", "--output=log.txt", "--nodes=1", *WITHOUT_GPUS]
REQUEUED = "slurm.sbatch: the job is queued again"


@pytest.fixture
def training(slurm, reference, tmp_path) -> Training:
    found = Training(slurm, tmp_path, reference)
    found.environment = job_environment(slurm) | {"NPROC": "1"}
    return found


def succeeds(training: Training, *words: object, seconds: int = 280, **environment: str) -> str:
    """Run a command in the folder; its output."""
    training.environment |= environment
    done = training.run([str(word) for word in words], seconds)
    assert done.returncode == 0, done.stdout + done.stderr + training.log()[-3000:]
    return done.stdout


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_a_corpus(training, tmp_path, dedup):
    """a corpus as an array of 4 jobs, merged: the bytes of one run; --dedup"""
    texts = make_texts(60)
    write_rows(tmp_path / "raw.jsonl", [{"text": text} for text in [*texts, *texts[:9]]])
    flags = ["--input", "raw.jsonl", "--tokenizer-type", "SentencePieceTokenizer", "--append-eod", "--clean"]
    flags += ["--tokenizer-model", write_model(tmp_path), "--dedup", dedup, "--workers", "1"]
    chimed = (sys.executable, "-m", "megatron_chimed", "corpus")
    succeeds(training, *SBATCH, "--array=0-3", SCRIPT, "corpus", *flags, "--output-prefix", "parts/corpus")
    succeeds(training, *chimed, "--merge", "--output-prefix", "parts/corpus")
    succeeds(training, *chimed, *flags, "--output-prefix", "whole/corpus")
    kinds = (".bin", ".idx", "rejected.jsonl")
    whole = files_of(tmp_path / "whole/corpus", *kinds)
    assert (
        len(whole) == 3
        and {n: d for n, d in files_of(tmp_path / "parts/corpus", *kinds).items() if n in whole} == whole
    )


def shrunk_recipe(folder: Path) -> None:
    """examples/ziya2_13b as recipe/ for a random model of some thousand weights and runs/small, with its data."""
    base = write_answering_hf(folder / "base_hf", 512)
    hf_to_megatron(base, folder / "elsewhere", progress=False)
    small = {"seq-length": 256, "train-iters": 2, "global-batch-size": 2, "lr-decay-iters": 2, "lr-warmup-iters": 0}
    small |= {"save-interval": 2, "eval-interval": 2, "eval-iters": 1}
    (folder / "recipe").mkdir()
    for path in (ROOT / "examples/ziya2_13b").glob("*.yaml"):
        text = path.read_text().replace("runs/ziya2_13b", "runs/small").replace("examples/ziya2_13b", "recipe")
        content = yaml.safe_load(text)
        if path.stem == "model":
            content = yaml.safe_load((folder / "elsewhere/model.yaml").read_text())
            content["megatron"] |= {"tokenizer-model": "runs/small/base/tokenizer"}
        elif path.stem == "rejection":
            content["prompts"]["count"] = 4
            content["sampling"] |= {"n": 2, "max_tokens": 8}
            content["filters"] = {"keep_cut_off": True, "max_repetition": 1.0}
            content["heldout_sampling"] = {"count": 2}
            content["training"]["ranks"] = 2
        else:
            megatron = content["megatron"]
            megatron |= {key: value for key, value in small.items() if key in megatron}
        (folder / "recipe" / path.name).write_text(yaml.safe_dump(content))
    run = folder / "runs/small"
    for name in ("documents", "sft", "reward"):
        (run / name).mkdir(parents=True)
    talks, groups = make_dialogues(40, most_turns=2, most_words=4), make_groups(60, most_words=2)
    for name, part in (("train", slice(30)), ("heldout", slice(30, 40))):
        write_rows(run / f"documents/{name}.jsonl", [{"text": text} for text in make_texts(200, seed=part.start or 0)])
        write_dialogues(run / f"sft/{name}.jsonl", talks[part])
    for name, part in (("train", slice(30)), ("valid", slice(30, 45)), ("test", slice(45, 60))):
        write_groups(run / f"reward/{name}.jsonl", groups[part])


@pytest.mark.timeout(1500)  # fourteen jobs, and sbatch --wait looks every half minute
def test_the_pipeline(training, tmp_path):
    """the pipeline by sbatch --wait on 2 nodes, a shrunk recipe: an export that is verified, all of it by jobs"""
    shrunk_recipe(tmp_path)
    slurm = f"sbatch --wait --nodes=2 --output=log.txt {shlex.join(WITHOUT_GPUS)} {SCRIPT}"
    words = ("launch/pipeline.sh", "recipe", "runs/small", "base_hf")
    succeeds(training, *words, seconds=1400, LAUNCH=slurm)
    assert (tmp_path / "runs/small/hf/config.json").exists()
    assert all(f"{stage} on 2 x CPU" in training.log() for stage in ("pretrain", "sft", "reward"))
    assert "logits" in training.log()


def looped(folder: Path, launcher: str, iterations: int) -> Path:
    """A loop of rejection sampling with a training of so many iterations; its configuration."""
    settings = rejection_loop.write_world(folder)
    stage = yaml.safe_load((folder / "stage.yaml").read_text())
    stage["megatron"] |= {"train-iters": iterations, "save-interval": 50}
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage))
    settings["training"]["launcher"] = launcher
    return rejection_loop.write_config(folder / "loop.yaml", settings)


def test_a_training_of_a_round(training, tmp_path):
    """rejection sampling whose launcher is `sbatch --wait ...` on 2 nodes: the round is done"""
    launcher = f"sbatch --wait --nodes=2 --output=log.txt {shlex.join(WITHOUT_GPUS)} {SCRIPT}"
    config = looped(tmp_path, launcher, 10)
    succeeds(training, sys.executable, "-m", "megatron_chimed", "rejection", "--config", config)
    assert "sft on 2 x CPU" in training.log()


def test_a_loop_as_a_job(training, tmp_path):
    """rejection sampling as a job, USR1 in its training: saved, queued again, done"""
    config = looped(tmp_path, "launch/torchrun.sh", 600)
    command = [word for word in SBATCH if word != "--wait"]
    job = succeeds(training, *command, SCRIPT, "rejection", "--config", config).strip()
    log = tmp_path / "loop/round-01/train/selected/loss.csv"
    until(lambda: log.exists() and len(log.read_text().splitlines()) > 5, "a training", 120)
    training.slurm.command("scancel", "--signal=USR1", job)
    training.ended(job, restarts=1)
    assert REQUEUED in training.log() and len(log.read_text().splitlines()) > 600


def test_an_evaluation(training, tmp_path):
    """evaluation as a job, USR1 while the model answers: saved, queued again, the results of one that was left alone"""
    hf = write_answering_hf(tmp_path / "hf", positions=640)
    pages = write_lines(tmp_path / "chimed.jsonl", [page(number) for number in range(48)])
    words = ["evaluate", "--model", f"hf:{hf}", "--runs", "1", "--batch-size", "2", "--max-new-tokens", "24"]
    words += ["--tasks", f"chimed={pages}", "--output"]
    succeeds(training, *SBATCH, SCRIPT, *words, "whole")
    command = [word for word in SBATCH if word != "--wait"]
    job = succeeds(training, *command, SCRIPT, *words, "stopped").strip()
    answers = tmp_path / "stopped/answers.jsonl"
    until(lambda: answers.exists() and len(answers.read_text().splitlines()) > 5, "answers", 120)
    training.slurm.command("scancel", "--signal=USR1", job)
    training.ended(job, restarts=1)
    assert REQUEUED in training.log()
    whole, stopped = (read_json(tmp_path / name / "results.json") for name in ("whole", "stopped"))
    assert whole == stopped and whole["tasks"]["chimed"]["metrics"]


ALLOCATED = {
    "torchrun.sh in salloc, 1 node": ("salloc", "--nodes=1", "--exclusive", "launch/torchrun.sh"),
    "srun torchrun.sh in salloc, 2 nodes": (
        *("salloc", "--nodes=2", "--ntasks-per-node=1", "--exclusive", "sh", "-c"),
        'NNODES=2 MASTER_ADDR=node1 MASTER_PORT=21000 NPROC=1 exec srun launch/torchrun.sh "$@"',
        "srun",
    ),
    "slurm.sbatch in salloc, 2 nodes": (
        *("salloc", "--nodes=2", "--ntasks-per-node=1", "--exclusive"),
        *("env", "NPROC=1", "sh", SCRIPT),
    ),
    "srun --pty, 1 node": ("srun", "--nodes=1", "--exclusive", "--pty", "launch/torchrun.sh"),
}


@pytest.mark.parametrize("form", ALLOCATED)
def test_interactive(training, form):
    """interactive: losses as by torchrun.sh;"""
    training.environment["NPROC"] = "2"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*ALLOCATED[form], *training.words, "--train-iters", "20"],
        cwd=training.folder,
        env=training.environment,
        stdin=theirs if "--pty" in ALLOCATED[form] else subprocess.DEVNULL,
        stdout=open(training.folder / "log.txt", "w"),  # noqa: SIM115  the child's
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.wait(timeout=120) == 0, training.log()[-3000:]
    os.close(ours)
    os.close(theirs)
    found = [row for row in training.rows() if row[1] == "train"]
    assert found == [row for row in training.reference.losses if row[1] == "train" and int(row[0]) <= 20]


COUNT = """#!/bin/sh
exec "{python}" -c 'from megatron_chimed.commands.train import count_gpus
from megatron_chimed.workers import count_cores
print(count_gpus(), "GPUs and", count_cores(), "cores")'
"""


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--gpus-per-node=8",), f"8 GPUs and {os.cpu_count()} cores"),
        (("--gpus-per-node=2",), f"2 GPUs and {os.cpu_count()} cores"),
        (("--gpus-per-node=2", "--oversubscribe", "--cpus-per-task=1"), "2 GPUs and 1 cores"),
    ],
    ids=["8", "2", "2 on a shared node"],
)
def test_gpus(training, tmp_path, options, found):
    """GPUs by pretence on a machine whose nvidia-smi shows 8: --gpus-per-node"""
    for name, text in (
        ("count", COUNT.format(python=sys.executable)),
        ("nvidia-smi", "#!/bin/sh\nseq -f 'GPU %g' 8\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    del training.environment["CUDA_VISIBLE_DEVICES"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    succeeds(training, *SBATCH, *options, SCRIPT, *training.words, PATH=path, PYTHON=str(tmp_path / "count"))
    assert training.log().splitlines()[-1] == found


def test_servers(training, tmp_path):
    """serve, a stand-in for vLLM, 2 nodes: a server on each node's own name; USR1 leaves them alone"""
    (tmp_path / "vllm").write_text('#!/bin/sh\necho "serves: $*"; sleep 300\n')
    (tmp_path / "vllm").chmod(0o755)
    command = [word for word in SBATCH if word != "--wait"]
    job = succeeds(training, *command, "--nodes=2", SCRIPT, "serve", "runs/hf", VLLM=str(tmp_path / "vllm")).strip()
    until(lambda: training.log().count("serves: ") == 2, "servers")
    training.slurm.command("scancel", "--batch", "--signal=USR1", job)
    flags = r"serves: serve runs/hf --port 8000 --tensor-parallel-size \d --host (.*)"
    assert sorted(re.findall(flags, training.log())) == ["node1", "node2"]
    assert re.findall("base_url: (.*)", training.log()) == ["http://node1:8000/v1", "http://node2:8000/v1"]
    assert training.slurm.show(job)["JobState"] == "RUNNING"
