"""The whole regime at TP 2 on a small model of Qwen3's shape, in its words; each training continues after a kill."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.chatml import chatml_renderer, write_chatml
from support.corpora import WORDS
from support.dialogues import make_dialogues, write_dialogues
from support.exam_files import page, write_lines
from support.families import make_model
from support.job import STAGE, Job, figures, write_corpus
from support.paths import ROOT
from support.rankings import make_groups, write_groups

from megatron_chimed.convert.architecture import read_hf
from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.tokenizer_files import copy_tokenizer
from megatron_chimed.evaluation.backends.models import EngineOptions, open_model
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.inference.open import open_engine
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings
from megatron_chimed.records import Turn
from megatron_chimed.rejection.config import read_config
from megatron_chimed.rejection.loop import run_loop, status
from megatron_chimed.rejection.prompts import read_prompts
from megatron_chimed.rejection.store import read_candidates

LENGTH, ITERATIONS = 256, 4
SYSTEM = Turn("system", "你是医生")
TRAINING = {
    "seq-length": LENGTH, "train-iters": ITERATIONS, "save-interval": 2, "eval-interval": 4, "split": "90,10,0",
    "tensor-model-parallel-size": 2, "sequence-parallel": True, "use-distributed-optimizer": True,
    "micro-batch-size": 1, "global-batch-size": 2,
}  # fmt: skip
STAGES = ("pretrain", "sft", "reward")
FIGURE = {"pretrain": "lm loss", "sft": "lm loss", "reward": "ranking loss"}


def talk(dialogue, number: int):
    """A dialogue with a system turn, and in every other one a last answer with thinking and first ones of context."""
    turns = list(dialogue.turns)
    if number % 2:
        turns = [replace(turn, learn=turn.role == "user") for turn in turns]
        turns[-1] = replace(turns[-1], thinking=WORDS[number % 9], learn=True)
    return replace(dialogue, turns=(SYSTEM, *turns))


@pytest.fixture(scope="module")
def world(tmp_path_factory, one_thread) -> Path:
    """Data of every stage, packed with the template qwen3; base, the checkpoint of a folder that transformers wrote."""
    folder = tmp_path_factory.mktemp("qwen3")
    write_chatml(folder / "tokenizer")
    shape = {"vocab_size": 441, "hidden_size": 64, "head_dim": 24, "num_hidden_layers": 2}  # more rows than ids
    make_model("Qwen3", shape | {"max_position_embeddings": 2 * LENGTH}).save_pretrained(folder / "hf")
    copy_tokenizer(folder / "tokenizer", folder / "hf")
    hf_to_megatron(folder / "hf", folder / "base", progress=False)
    write_corpus(folder, 60, ids=425)
    renderer = chatml_renderer(folder / "tokenizer")
    talks = [talk(one, number) for number, one in enumerate(make_dialogues(60, most_turns=2, most_words=4))]
    for name, some in (("train", talks[:48]), ("heldout", talks[48:])):
        path = write_dialogues(folder / f"{name}.jsonl", some)
        options = DialogueRowOptions(LENGTH, progress=False)
        pack_dialogues([str(path)], folder / f"{name}_rows", renderer, options, str(folder / "tokenizer"))
    groups = [replace(one, turns=(SYSTEM, *one.turns)) for one in make_groups(40, most_words=2)]
    path = write_groups(folder / "ranked.jsonl", groups)
    pack_rankings([str(path)], folder / "reward_rows", renderer, RankingRowOptions(2 * LENGTH, progress=False))
    return folder


def job_of(stage: str, world: Path, folder: Path) -> tuple[Job, list]:
    """A stage's training, and the words that start it from the one before it."""
    data = {"pretrain": "corpus_text_document", "sft": "train_rows", "reward": "reward_rows"}[stage]
    before = {"pretrain": "base", "sft": "pretrain", "reward": "sft"}[stage]
    more = {"data-path": str(world / data)} | ({"seq-length": 2 * LENGTH} if stage == "reward" else {})
    job = Job(folder, stage=TRAINING | more, name=stage)
    job.model = world / "base/model.yaml"
    return job, ["--load", world / before, "--finetune"]


@pytest.fixture(scope="module")
def trained(world) -> Path:
    """The three trainings, one after the other, each in the folder of its name."""
    for stage in STAGES:
        job, start = job_of(stage, world, world / f"{stage}_job")
        job.run(*start, "--save", world / stage)
    return world


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_continues_to_the_same_figures(trained, tmp_path, stage):
    expected, save = figures(trained / stage, name=FIGURE[stage]), tmp_path / "run"
    assert [row[0] for row in expected] == [str(number + 1) for number in range(ITERATIONS)]
    job, start = job_of(stage, trained, tmp_path)
    delay = random.uniform(0, 0.3)
    job.run_until(random.randint(2, ITERATIONS - 1), save, delay, *start, "--save", save)
    job.run(*start, "--save", save)
    assert figures(save, name=FIGURE[stage]) == expected, f"killed {delay:.2f} s later"


def test_a_round_of_rejection_sampling_goes_from_there_to_a_folder_that_is_evaluated(trained, tmp_path):
    settings = {
        "output": str(tmp_path / "loop"), "start": str(trained / "sft"), "reward": str(trained / "reward"),
        "tokenizer": str(trained / "tokenizer"), "template": "qwen3", "think": True, "thinking": "mask",
        "dialogues": [str(trained / "train.jsonl")], "heldout": [str(trained / "heldout.jsonl")],
        "model": str(trained / "base/model.yaml"), "stage": str(tmp_path / "stage.yaml"), "control": False,
        "prompts": {"count": 6}, "sampling": {"n": 2, "max_tokens": 12, "temperature": 0.5},
        "generator": {"tensor_parallel": 2}, "scorer": {"tensor_parallel": 1},
        "filters": {"keep_cut_off": True, "max_repetition": 1.0}, "heldout_sampling": {"count": 3},
        "training": {"launcher": str(ROOT / "launch/torchrun.sh"), "ranks": 2},
    }  # fmt: skip
    stage = {key: value for key, value in (STAGE | TRAINING).items() if key != "split"}
    stage["valid-data-path"] = [str(trained / "heldout_rows")]
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump({"megatron": stage}))
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(settings))
    run_loop(config := read_config(tmp_path / "loop.yaml"))
    assert all(line.split()[2] == "done" for line in status(config).splitlines()[1:])
    folder = config.output / "round-01"
    prompts = list(read_prompts([folder / "prompts.jsonl"]))
    assert len(prompts) == 6 and all(prompt.turns[0] == SYSTEM for prompt in prompts)
    assert [one.prompt for one in read_candidates(folder / "selected.jsonl")] == [prompt.id for prompt in prompts]
    assert PackedRows(folder / "packed/selected").manifest["thinking"] == "mask"

    hf = tmp_path / "hf"
    megatron_to_hf(folder / "train/selected", hf, progress=False)
    assert read_hf(hf) == read_hf(trained / "hf")
    pairs = [([420, 300 + n, 421], [301, 302]) for n in range(3)]
    with open_engine(f"megatron:{folder / 'train/selected'}", tensor_parallel=2) as engine:
        ours = [score for score, _ in engine.loglikelihoods(pairs)]
    with open_engine(f"hf:{hf}", dtype="float32") as engine, open_engine(f"hf:{trained / 'hf'}") as base:
        assert ours == pytest.approx([score for score, _ in engine.loglikelihoods(pairs)], abs=1e-4)
        assert ours != pytest.approx([score for score, _ in base.loglikelihoods(pairs)], abs=1e-2)

    pages = write_lines(tmp_path / "chimed.jsonl", [page(number, "建议检查血压。") for number in range(3)])
    template = chatml_renderer(trained / "tokenizer").template
    model = open_model(f"hf:{hf}", EngineOptions(), template)
    settings = Settings(runs=1, max_new_tokens=12)
    results = evaluate_model(model, [f"chimed={pages}"], tmp_path / "out", settings, template, progress=False)
    assert results["tasks"]["chimed"]["n"] == 3 and results["tasks"]["chimed"]["cut_prompts"] == 0
