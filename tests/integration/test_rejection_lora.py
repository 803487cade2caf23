"""Rounds of rejection sampling that train adapters: each samples from the base with the adapters of the round before,
and goes on training these."""

from pathlib import Path

import pytest
import yaml
from support import rejection_loop as loop
from support.job import Job, figures

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.lora import open_checkpoint
from megatron_chimed.inference.open import open_engine
from megatron_chimed.rejection.config import read_config
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.generator import build_requests, sample
from megatron_chimed.rejection.loop import make_rounds, run_loop
from megatron_chimed.rejection.prompts import read_prompts
from megatron_chimed.rejection.store import read_candidates

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = ("prompts", "generate", "score", "select", "pack", "train")  # what a round hands to the next one


@pytest.fixture(scope="module")
def rounds(tmp_path_factory) -> list[RoundContext]:
    """A loop of two rounds with adapters, both trained."""
    folder = tmp_path_factory.mktemp("rejection_lora")
    settings = loop.write_world(folder) | {"rounds": 2, "prompts": {"count": 4}, "training": {"ranks": 1}}
    settings |= {"scorer": {"engine": "hf"}, "reward": str(folder / "reward.hf")}
    settings["sampling"] |= {"n": 2, "temperature": 1.0}
    stage = yaml.safe_load(Path(settings["stage"]).read_text())["megatron"]
    stage |= {"lr": 1e-2, "train-iters": 8, "save-interval": 100, "eval-iters": 0}
    lora = {"lora": {"rank": 4, "alpha": 8}}
    Path(settings["stage"]).write_text(yaml.safe_dump({"megatron": stage, "chimed": lora}))
    config = read_config(loop.write_config(folder / "loop.yaml", settings))
    for number in (1, 2):
        for step in STEPS:
            run_loop(config, step, number)
    return make_rounds(config)


@pytest.fixture(scope="module")
def merged(rounds, tmp_path_factory) -> Path:
    """hf and megatron: the model of round 1 as one, which knows of no adapters."""
    folder = tmp_path_factory.mktemp("merged")
    megatron_to_hf(rounds[1].checkpoint, folder / "hf", merge=True, progress=False)
    hf_to_megatron(folder / "hf", folder / "megatron", progress=False)
    return folder


def test_the_adapters_of_every_round_belong_to_the_start(rounds):
    for ctx in rounds[1:]:
        opened = open_checkpoint(ctx.checkpoint)
        assert opened.lora is not None and opened.lora.base == ctx.config.paths.start


def test_the_second_round_samples_from_the_start_with_the_adapters_of_the_first(rounds, merged):
    ctx, found = rounds[2], []
    prompts = list(read_prompts([ctx.file("prompts.jsonl")]))
    asked = build_requests(prompts, ctx.renderer, round=2, n=2, seed=(ctx.config.paths.seed, "sample", 2))
    for place in (merged / "hf", f"{ctx.config.paths.start}.hf"):
        with open_engine(f"hf:{place}", tokenizer=ctx.renderer.tokenizer) as engine:
            found.append({one.key: one.response for one in sample(engine, asked, ctx.config.sampling, ctx.renderer)})
    stored = {one.key: one.response for one in read_candidates(ctx.file("candidates.jsonl"))}
    assert stored == found[0] != found[1]


def test_the_second_round_goes_on_training_from_there(rounds, merged, tmp_path):
    """Its first loss is that of the merged model with new adapters, which change nothing yet."""
    ctx, first = rounds[2], {}
    for name, load in (("merged", merged / "megatron"), ("start", ctx.config.paths.start)):
        job = Job(tmp_path / name, name="sft")
        job.model, job.stage = Path(ctx.config.paths.model), Path(ctx.config.paths.stage)
        words = ["--load", load, "--finetune", "--train-data-path", ctx.file("packed/selected"), "--train-iters", 1]
        words += ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", ctx.config.paths.tokenizer]
        job.run(*words, "--save", tmp_path / name / "run", ranks=1)
        first[name] = float(figures(tmp_path / name / "run")[0][1])
    found = float(figures(ctx.checkpoint)[0][1])
    assert found == pytest.approx(first["merged"], abs=1e-5)
    assert abs(found - first["start"]) > 1e-2
