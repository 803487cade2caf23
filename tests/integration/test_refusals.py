"""What a training refuses, before it starts, in one line and without a traceback."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.dialogues import make_dialogues, make_renderer, write_dialogues
from support.forked import ON_CPU
from support.job import MODEL, ROOT, Job, figures, write_corpus
from support.ranks import start as start_ranks

from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues


def start(*words: object, ranks: int = 1) -> tuple[int, str]:
    """Exit code and output of so many ranks."""
    with tempfile.NamedTemporaryFile() as said:
        code = start_ranks(words, ranks, Path(said.name)).wait(200)
        return code, said.read().decode()


def launch(*words: object) -> tuple[int, str]:
    """The same of two ranks as a user starts them, without what they print on stdout."""
    done = subprocess.run(
        ["launch/torchrun.sh", *map(str, words)],
        cwd=ROOT,
        env=os.environ | ON_CPU | {"PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stderr


EXPERTS = ("--num-experts", 4, "--qk-layernorm", "--moe-ffn-hidden-size", 32)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    return Job(folder, stage={"data-path": str(write_corpus(folder))})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--fp16"], "need a GPU, and this machine has none: --fp16 (use --bf16 or float32)"),
        (
            ["--transformer-impl", "transformer_engine"],
            "--transformer-impl transformer_engine (Transformer Engine cannot run here: use local)",
        ),
        (["--context-parallel-size", 2], "--context-parallel-size (use 1)"),
        (["--num-layers", "two"], "command line --num-layers: --num-layers expects int, found 'two'"),
        (["--num-layer", 2], "Megatron has no argument 'num-layer'"),
        (["--micro-batch-size", 3], "Megatron refuses these arguments"),
        (
            ["--normalization", "LayerNorm"],
            "the model could not be exported: normalization is 'LayerNorm'; Hugging Face's LLaMA has 'RMSNorm'",
        ),
        (
            [*EXPERTS, "--moe-shared-expert-intermediate-size", 32],
            "could not be exported: moe_shared_expert_intermediate_size is 32; Hugging Face's Qwen3-MoE has None",
        ),
        (
            [*EXPERTS, "--moe-router-load-balancing-type", "sinkhorn", "--moe-z-loss-coeff", 0.1],
            "--moe-router-load-balancing-type sinkhorn is not supported; take aux_loss or none; --moe-z-loss-coeff is",
        ),
        (
            [*EXPERTS, "--moe-grouped-gemm", "--moe-token-dispatcher-type", "flex"],
            "--moe-grouped-gemm (leave it out: experts are computed one after the other); --moe-token-dispatcher-type",
        ),
        ([*EXPERTS, "--moe-use-upcycling"], "--moe-use-upcycling is not supported; start from a model with experts"),
        (["--vocab-size", 100], "was tokenized with 250 ids, but the model has 100"),
        (["--load", "/no/such"], "--load /no/such: no checkpoint there"),
        (["--save", "/proc/none"], "--save /proc/none: cannot be written"),
        (["--full-validation"], "--full-validation is not supported; give --eval-iters"),
        (["--lr-warmup-iters", 500], "--lr-warmup-iters 500: the schedule ends after"),
        (["--eval-interval", 0], "no --eval-interval is given; give the iterations between evaluations"),
        (["--dataloader-type", "single"], "the stages bring their own loader"),
        (["--data-path", "/no/such_document"], "/no/such_document: no manifest lists such_document.bin"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(job, overrides, message):
    code, output = start("pretrain", job.model, job.stage, *overrides)
    lines = [line for line in output.splitlines() if "megatron_chimed: error:" in line]
    assert code == 1 and "Traceback" not in output, output
    assert len(lines) == 1 and message in lines[0], output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tune", "a.yaml", "b.yaml"], "with STAGE one of pretrain, sft, reward, dpo; found tune a.yaml b.yaml"),
        (["pretrain", "a.yaml", "b.yaml"], "a.yaml: No such file or directory; give a YAML"),
    ],
)
def test_a_wrong_command_line_is_one_line_of_two_ranks(words, message):
    code, output = start(*words, ranks=2)
    assert code == 1 and "Traceback" not in output, output
    assert output.count("megatron_chimed: error:") == 1 and message in output, output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: stage, MODEL.yaml, STAGE.yaml"),
        (["tune", "a.yaml", "b.yaml"], "argument stage: invalid choice: 'tune'"),
    ],
)
def test_the_launcher_starts_no_rank_for_a_wrong_command_line(words, message):
    code, output = launch(*words)
    assert code == 2 and "Traceback" not in output, output
    assert output.count("chimed train: error:") == 1 and message in output, output


@pytest.fixture(scope="module")
def tuning(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    source = write_dialogues(folder / "dialogues.jsonl", make_dialogues(40, most_words=5))
    options = DialogueRowOptions(sequence_length=64, progress=False)
    pack_dialogues([str(source)], folder / "packed", make_renderer("sentencepiece", folder), options)
    return Job(folder, {"vocab-size": 420}, {"data-path": str(folder / "packed")}, name="sft")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--seq-length", 32], "packed in rows of 64 tokens, --seq-length is 32; pack again"),
        (["--vocab-size", 100], "tokenized with 420 ids, but the model has 100; pack with the model's tokenizer"),
        (["--data-path", "/no/such"], "/no/such: no such folder; make it with chimed pack sft or chimed pack rewards"),
    ],
)
def test_packed_rows_that_do_not_fit_the_training_are_refused(tuning, overrides, message):
    code, output = start("sft", tuning.model, tuning.stage, *overrides)
    assert code == 1 and "Traceback" not in output, output
    assert output.count("megatron_chimed: error:") == 1 and message in output, output


def test_packed_rows_that_do_not_fit_between_pipeline_stages_are_refused(tmp_path):
    stage = {"data-path": str(write_corpus(tmp_path)), "pipeline-model-parallel-size": 2}
    job = Job(tmp_path, stage=stage, chimed={"isolate_documents": True})
    code, output = start("pretrain", job.model, job.stage, ranks=2)
    assert code == 1 and "Traceback" not in output, output
    assert "needs --micro-batch-size 1" in output


def test_a_truncated_corpus_stops_every_rank_before_the_training(tmp_path):
    prefix = write_corpus(tmp_path)
    binary = prefix.with_name(f"{prefix.name}.bin")
    binary.write_bytes(binary.read_bytes()[:-2])
    job = Job(tmp_path, stage={"data-path": str(prefix), "tensor-model-parallel-size": 2})
    code, output = launch("pretrain", job.model, job.stage, "--save", tmp_path / "run")
    assert code == 1 and "Traceback" not in output, output
    assert f"{binary}: has" in output and "build the corpus again" in output


def test_what_does_not_fit_the_checkpoint_is_refused_on_resuming(tmp_path):
    stage = {"data-path": str(write_corpus(tmp_path)), "lr-decay-style": "cosine"}
    stage |= {"tensor-model-parallel-size": 2, "use-distributed-optimizer": True}
    job = Job(tmp_path, stage=stage)
    job.run("--save", tmp_path / "run", "--train-iters", 1)
    again = ("pretrain", job.model, job.stage, "--save", tmp_path / "run", "--train-iters", 2)
    code, output = start(*again, ranks=2)
    assert code == 1 and "Traceback" not in output, output
    assert "set --lr-decay-iters to the same value in every run" in output
    code, output = start(*again, "--lr-decay-iters", 1, "--tensor-model-parallel-size", 1)
    assert code == 1 and "Traceback" not in output, output
    assert "(TP, PP) mismatch after resume" in output and "--finetune" in output


def test_a_training_without_validation_data_goes_without_evaluation(tmp_path):
    job = Job(tmp_path, stage={"data-path": str(write_corpus(tmp_path)), "split": "1,0,0", "eval-interval": 1})
    assert "no validation data" in job.run("--save", tmp_path / "run", "--train-iters", 2, ranks=1)
    assert len(figures(tmp_path / "run")) == 2


def test_every_argument_of_the_shipped_configurations_is_one_of_megatrons():
    from megatron.training.arguments import add_megatron_arguments

    from megatron_chimed.config import load_settings
    from megatron_chimed.training.arguments import to_argv

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    others = ("model.yaml", "rejection.yaml")
    stages = [path for path in sorted((ROOT / "examples").glob("*/*.yaml")) if path.name not in others]
    assert len(stages) >= 2
    for stage in stages:
        model = stage.with_name("model.yaml")  # that of real weights is made of them
        settings = load_settings(model if model.is_file() else ROOT / "examples/quickstart/model.yaml", stage, [])
        parsed = parser.parse_args(to_argv(settings.megatron, parser))
        assert parsed.num_layers and (parsed.train_iters or settings.chimed["epochs"])
    assert set(MODEL) <= {name.lstrip("-") for name in parser._option_string_actions}
