"""Recipes of the paper's 13B model and of Qwen3-8B: the numbers that arXiv 2311.06025 fixes, a word on the others."""

import re

import pytest
import yaml
from guards import tree

from megatron_chimed.config import load_settings, parse_dataclass
from megatron_chimed.models.options import ModelOptions
from megatron_chimed.plan.layout import problems
from megatron_chimed.plan.memory import GIB, worst
from megatron_chimed.plan.settings import read_plan
from megatron_chimed.rejection.config import read_config, training_shape
from megatron_chimed.stages.options import PretrainConfig, RewardConfig, SftConfig
from megatron_chimed.training.options import JobOptions

EXAMPLES = tree.ROOT / "examples"
STAGES = {"pretrain": PretrainConfig, "sft": SftConfig, "reward": RewardConfig, "rejection_sft": SftConfig}

DECODER = {
    "normalization": "RMSNorm",
    "position-embedding-type": "rope",
    "swiglu": True,
    "disable-bias-linear": True,
    "untie-embeddings-and-output-weights": True,
}
SHAPES = {
    "ziya2_13b": DECODER
    | {
        "num-layers": 40,
        "hidden-size": 5120,
        "num-attention-heads": 40,
        "ffn-hidden-size": 13824,
        "vocab-size": 39424,
        "max-position-embeddings": 4096,
    },
    "qwen3_8b": DECODER
    | {
        "num-layers": 36,
        "hidden-size": 4096,
        "num-attention-heads": 32,
        "group-query-attention": True,
        "num-query-groups": 8,
        "kv-channels": 128,
        "ffn-hidden-size": 12288,
        "vocab-size": 151936,
        "max-position-embeddings": 40960,
        "rotary-base": 1000000,
        "norm-epsilon": 1e-6,
        "qk-layernorm": True,
    },
}
"""Of the paper's base model, and of Qwen3-8B's config.json."""
LAYOUT = {
    "tensor-model-parallel-size": 2,
    "bf16": True,
    "use-distributed-optimizer": True,
    "sequence-parallel": True,
    "attention-backend": "flash",
    "recompute-granularity": "selective",
    "seq-length": 4096,
}
PAPER = {
    "pretrain": {"adam-beta1": 0.9, "adam-beta2": 0.95, "lr": 5e-5, "weight-decay": 0.1, "clip-grad": 1.0},
    "sft": {"lr": 2e-5, "weight-decay": 0.1, "global-batch-size": 16},
    "reward": {"lr": 5e-6, "min-lr": 5e-7, "lr-decay-style": "cosine", "global-batch-size": 8},
    "rejection_sft": {
        "adam-beta1": 0.9,
        "adam-beta2": 0.95,
        "adam-eps": 1e-5,
        "lr": 1e-5,
        "weight-decay": 0.1,
        "train-iters": 400,
        "global-batch-size": 64,
    },
}
TOKENS = {"pretrain": 214e6, "sft": (84 + 460 + 17 + 3) * 1e6}


RECIPES = pytest.mark.parametrize("recipe", SHAPES)


def load(recipe: str, stage: str):
    """The settings of a stage."""
    return load_settings(EXAMPLES / recipe / "model.yaml", EXAMPLES / recipe / f"{stage}.yaml", [])


def settings(recipe: str, stage: str) -> dict:
    """Megatron's arguments of a stage as values."""
    return {key: one.value for key, one in load(recipe, stage).megatron.items()}


def number(value):
    """YAML 1.1 reads 5e-5 as text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


@RECIPES
@pytest.mark.parametrize("stage", STAGES)
def test_every_number_of_the_paper_is_in_the_recipe(recipe, stage):
    given = {key: number(value) for key, value in settings(recipe, stage).items()}
    wanted = SHAPES[recipe] | LAYOUT | PAPER[stage]
    assert {key: given.get(key) for key in wanted} == wanted


@pytest.mark.parametrize(("recipe", "without_padding"), [("ziya2_13b", [1, 2, 4]), ("qwen3_8b", [1, 2])])
def test_the_vocabulary_needs_no_padding(recipe, without_padding):
    given = settings(recipe, "pretrain")
    rows, multiple = given["vocab-size"], given["make-vocab-size-divisible-by"]
    assert [ranks for ranks in (1, 2, 4, 8) if rows % (multiple * ranks) == 0] == without_padding


def test_the_papers_model_has_no_groups():
    assert "group-query-attention" not in settings("ziya2_13b", "pretrain")


@RECIPES
def test_a_run_sees_the_papers_tokens_once(recipe):
    for stage, tokens in TOKENS.items():
        given = settings(recipe, stage)
        per_step = given["global-batch-size"] * given["seq-length"]
        assert abs(given["train-iters"] * per_step - tokens) < per_step, stage
        assert given["lr-decay-iters"] == given["train-iters"]


@RECIPES
def test_the_reward_model_takes_two_epochs_with_the_papers_warm_up(recipe):
    filled = parse_dataclass(load(recipe, "reward").chimed, ModelOptions, RewardConfig, JobOptions)[1]
    given = settings(recipe, "reward")
    assert filled.epochs == 2 and filled.margin == 0 and filled.center_rewards_coefficient == 0
    assert not [key for key in given if key.startswith("lr-warmup") or key in ("train-iters", "lr-decay-iters")]


@RECIPES
@pytest.mark.parametrize(("stage", "kind"), STAGES.items())
def test_every_stage_fills_its_dataclass(recipe, stage, kind):
    given = load(recipe, stage).chimed
    model, options, job = parse_dataclass(given, ModelOptions, kind, JobOptions)
    job.check()
    assert job.keep_checkpoints >= 2 or stage == "rejection_sft"  # a damaged one has one before it
    assert model.attention == "auto"
    assert getattr(options, "isolate_instances", False) is False  # the paper's plain concatenation


@pytest.mark.parametrize(("recipe", "template", "positions"), [("ziya2_13b", None, 4096), ("qwen3_8b", "qwen3", 40960)])
def test_rejection_sampling_takes_the_papers_prompts_and_top_k(recipe, template, positions):
    loop = read_config(EXAMPLES / recipe / "rejection.yaml")
    assert loop.paths.template == template
    assert (loop.prompts.count, loop.selection.strategy, loop.paths.rounds) == (10000, "top_k", 1)
    assert loop.generator.tensor_parallel == loop.scorer[0].tensor_parallel == 2
    assert (tree.ROOT / loop.paths.model).samefile(EXAMPLES / recipe / "model.yaml")
    assert (tree.ROOT / loop.paths.stage).samefile(EXAMPLES / recipe / "rejection_sft.yaml")
    shape = training_shape(tree.ROOT / loop.paths.model, tree.ROOT / loop.paths.stage)
    assert (shape.sequence_length, shape.max_positions) == (4096, positions)


@RECIPES
def test_each_stage_starts_from_what_the_one_before_it_leaves(recipe):
    chain = [settings(recipe, stage) for stage in ("pretrain", "sft", "reward")]
    assert [one["load"] for one in chain[1:]] == [one["save"] for one in chain[:-1]]
    loop = read_config(EXAMPLES / recipe / "rejection.yaml").paths
    assert (loop.start, loop.reward) == (chain[1]["save"], chain[2]["save"])
    every = [value for one in chain for value in (one["load"], one["save"])]
    assert all(value.startswith(f"runs/{recipe}/") for value in every)


@RECIPES
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_recipe_with_lora_has_the_rows_and_steps_of_the_full_one_and_fits_its_gpus(recipe, stage):
    full, lora = load(recipe, stage), load(recipe, f"lora/{stage}")
    same = {"train-data-path", "valid-data-path", "load", "global-batch-size", "seq-length", "weight-decay"}
    same |= {"train-iters"} if stage == "sft" else set()
    assert {key: full.megatron[key].value for key in same} == {key: lora.megatron[key].value for key in same}
    assert full.megatron["save"].value != lora.megatron["save"].value
    options = parse_dataclass(lora.chimed, ModelOptions, STAGES[stage], JobOptions)[0].lora
    assert options.rank == 16 and not options.problems()
    gpus, limit = {"ziya2_13b": (2, 80), "qwen3_8b": (1, 48)}[recipe]
    assert worst_of(stage, lora, gpus) < 0.9 * limit * GIB < worst_of(stage, full, 2)


def worst_of(stage: str, given, gpus: int) -> int:
    """Bytes of the GPU that needs most."""
    plan = read_plan(stage, given, gpus)
    assert not problems(plan.model, plan.layout)
    return worst(plan.model, plan.layout)[1].total


FIXED = LAYOUT.keys() | {"finetune", "load", "save", "train-data-path", "valid-data-path"}
FIXED |= {"test-data-path", "tokenizer-type", "tokenizer-model", "make-vocab-size-divisible-by"}


@RECIPES
@pytest.mark.parametrize("stage", STAGES)
def test_every_value_that_the_paper_does_not_fix_says_so(recipe, stage):
    """Marked `# ours`, or another comment on the line."""
    for line in (EXAMPLES / recipe / f"{stage}.yaml").read_text().splitlines():
        if found := re.match(r"  ([a-z][\w-]*):", line):
            assert found[1] in FIXED | PAPER[stage].keys() or " # " in line or found[1] == "epochs", line


@pytest.mark.parametrize(
    "file",
    [file for recipe in SHAPES for file in sorted((EXAMPLES / recipe).rglob("*.yaml"))],
    ids=lambda file: f"{file.parent.name}-{file.stem}",
)
def test_every_mark_has_its_reason(file):
    assert not re.findall(r".*# ours(?!: \w).*", file.read_text().split("\nmegatron:")[-1].split("\noutput:")[-1])


@RECIPES
def test_control_the_marks_are_not_on_the_papers_numbers(recipe):
    for stage, wanted in PAPER.items():
        text = (EXAMPLES / recipe / f"{stage}.yaml").read_text()
        lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
        assert not [key for key in wanted if "# ours" in lines[key]], stage
        assert yaml.safe_load(text).keys() == {"megatron", "chimed"}
