"""What the plan computes against what Megatron builds, and the dry run of the real trainer."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.forked import ON_CPU
from support.job import ROOT, write_corpus
from support.paths import TESTS

from megatron_chimed.convert.families import FAMILIES
from megatron_chimed.convert.family import Family
from megatron_chimed.models.options import LoraOptions
from megatron_chimed.plan import memory
from megatron_chimed.plan.layout import Layout
from megatron_chimed.plan.model import Model

WORKER = TESTS / "support" / "plan_worker.py"

PLAIN = {"layers": 2, "hidden": 64, "ffn": 160, "heads": 4, "num_query_groups": 4, "head_dim": 16, "vocab": 250}
GROUPED = PLAIN | {"num_query_groups": 2, "head_dim": 24, "vocab": 300, "ffn": 100}
CASE = {"sizes": PLAIN, "tied": False, "head": "lm", "family": "llama", "multiple": 128, "half": False}
CASE |= {"tp": 1, "pp": 1, "dp": 1, "last": False, "distributed_optimizer": False}
HALF = {"half": True, "distributed_optimizer": True}

CASES = [
    CASE | {"sizes": sizes, "tied": tied, "tp": tp, "family": "qwen3" if sizes is GROUPED else "llama"}
    for sizes, tied, tp in itertools.product((PLAIN, GROUPED), (False, True), (1, 2))
]
CASES += [CASE | {"half": half, "distributed_optimizer": d} for half, d in itertools.product((False, True), repeat=2)]
CASES += [
    CASE | {"sizes": GROUPED, "dp": 3, "tp": 2, "distributed_optimizer": True},
    CASE | HALF | {"sizes": GROUPED, "dp": 5, "tp": 2, "multiple": 1, "family": "qwen3"},
    CASE | HALF | {"sizes": GROUPED, "family": "qwen3"},
    CASE | HALF | {"sizes": GROUPED, "dp": 3, "tp": 2, "family": "qwen2"},
    CASE | {"sizes": GROUPED, "tp": 2, "family": "qwen2", "tied": True},
    CASE | HALF | {"head": "reward", "dp": 512, "tied": True},
    CASE | HALF | {"pp": 2, "dp": 5, "tied": True, "sizes": GROUPED},
    CASE | HALF | {"pp": 2, "dp": 5, "tied": True, "sizes": GROUPED, "last": True},
    CASE | HALF | {"pp": 2, "tp": 2, "last": True, "head": "reward", "tied": True},
]

EXPERTS = GROUPED | {"experts": 4, "expert_ffn": 52}
MOE = CASE | {"sizes": EXPERTS, "family": "qwen3_moe", "top": 2}
CASES += [
    MOE,
    MOE | HALF | {"tp": 2, "dp": 3},
    MOE | HALF | {"ep": 2, "dp": 6, "tp": 2},
    MOE | HALF | {"ep": 4, "etp": 1, "dp": 6, "tp": 2, "pp": 2, "last": True, "head": "reward"},
    MOE | {"etp": 1, "tp": 2, "dp": 2, "tied": True},
]

LORA = {"rank": 4, "alpha": 8}
CASES += [
    CASE | HALF | {"sizes": GROUPED, "dp": 3, "tp": 2, "family": "qwen3", "lora": LORA},
    CASE | {"sizes": GROUPED, "tied": True, "lora": LORA | {"targets": ["q_proj", "down_proj"]}},
    CASE | HALF | {"pp": 2, "tp": 2, "last": True, "head": "reward", "tied": True, "lora": LORA},
    MOE | HALF | {"tp": 2, "dp": 3, "lora": LORA | {"targets": ["v_proj", "o_proj"]}},
]

WIDE = {"layers": 1, "hidden": 256, "ffn": 704, "heads": 8, "num_query_groups": 4, "head_dim": 32, "vocab": 250}
CASES += [
    CASE | HALF | {"sizes": WIDE, "tp": tp, "recompute": recompute}
    for tp, recompute in ((1, "none"), (2, "none"), (1, "core_attn"), (2, "mlp"), (1, "full"), (2, "full"))
]
CASES += [
    CASE | HALF | {"sizes": WIDE, "tp": tp, "recompute": "none", "family": family}
    for tp, family in itertools.product((1, 2), ("qwen2", "qwen3"))
]
CASES += [
    MOE | HALF | {"sizes": WIDE | {"experts": 8, "expert_ffn": 96}, "tp": tp, "top": top, "recompute": recompute}
    for tp, top, recompute in ((1, 2, "none"), (2, 3, "none"), (1, 2, "moe"), (1, 2, "full"))
]
DROPPED = ((1, "none", 0.0), (2, "none", 0.0), (1, "none", 0.1), (2, "none", 0.1), (1, "full", 0.0))
CASES += [
    CASE | HALF | {"sizes": WIDE, "tp": tp, "recompute": recompute, "lora": LORA | {"dropout": dropout}}
    for tp, recompute, dropout in DROPPED
]
CASES += [
    CASE | HALF | {"sizes": WIDE, "tp": 1, "recompute": "none", "lora": LORA | {"targets": targets}}
    for targets in (["q_proj", "v_proj"], ["o_proj"], ["up_proj", "down_proj"])
]
CASES.append(CASE | HALF | {"sizes": WIDE | {"num_query_groups": 8}, "recompute": "none", "family": "qwen3"})


def planned(case: dict) -> dict[str, int]:
    """The same figures by arithmetic."""
    if "recompute" in case:
        return {"kept": layer_kept(case)}
    more = {"family": family_of(case), "tied": case["tied"], "head": case["head"]}
    more |= {"experts_per_token": case.get("top", 0), "lora": lora_of(case)}
    model = Model(**case["sizes"], vocab_multiple=case["multiple"], **more)
    experts = {"ep": case.get("ep", 1), "etp": case.get("etp")}
    tp, pp, stage = case["tp"], case["pp"], case["pp"] - 1 if case["last"] else 0
    layout = Layout(
        tp * pp * case["dp"],
        tp,
        pp,
        1,
        1,
        64,
        half=case["half"],
        distributed_optimizer=case["distributed_optimizer"],
        **experts,
    )
    states = memory.states(model, layout, stage)
    return dict(zip(("weights", "gradients", "optimizer"), states, strict=True)) | {
        "parameters": model.parameters(tp, pp, stage, **experts)
    }


def family_of(case: dict) -> Family:
    return next(family for family in FAMILIES if family.name == case["family"])


def lora_of(case: dict) -> LoraOptions | None:
    return LoraOptions(**case["lora"]) if "lora" in case else None


def layer_kept(case: dict) -> int:
    """What a layer keeps of a row of 128 tokens."""
    recompute = case["recompute"] if case["recompute"] in ("none", "full") else "selective"
    split = case["tp"] > 1
    layout = Layout(case["tp"], case["tp"], 1, 1, 1, 128, split, half=True, recompute=recompute)
    more = {"experts_per_token": case.get("top", 0), "lora": lora_of(case)}
    model = Model(**case["sizes"], family=family_of(case), **more)
    return memory.layer_kept(model, replace(layout, recomputed=(case["recompute"],)))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> list[dict[str, int]]:
    """What Megatron built for each case, in one process."""
    cases = tmp_path_factory.mktemp("plan") / "cases.json"
    cases.write_text(json.dumps(CASES))
    done = subprocess.run(
        [sys.executable, WORKER, cases],
        cwd=ROOT,
        env=os.environ | ON_CPU | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_parameters_and_bytes_are_those_of_the_built_model(built, number):
    assert len(built) == len(CASES)
    assert planned(CASES[number]) == built[number], CASES[number]


def plan(*words: object, name: str = "ziya2_13b") -> subprocess.CompletedProcess:
    """tools/plan.py on a recipe's pre-training, without its tokenizer."""
    recipe = [f"examples/{name}/model.yaml", f"examples/{name}/pretrain.yaml"]
    if "--tokenizer-type" not in words:
        recipe += ["--tokenizer-type", "NullTokenizer"]
    command = [sys.executable, "tools/plan.py", *recipe, *words]
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A tiny corpus."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), 300)


@pytest.mark.parametrize(
    ("name", "more", "scaled"),
    [
        ("ziya2_13b", (), "1 of 40 layers, width 256 of 5120"),
        ("qwen3_8b", ("--seq-length", 512), "1 of 36 layers, width 1024 of 4096"),  # logits of 151,936 ids take long
    ],
)
def test_a_recipe_passes_a_dry_run_on_1024_gpus(corpus, name, more, scaled):
    data = ("--train-data-path", corpus, "--valid-data-path", corpus)
    done = plan("--dry-run", "--world-size", 1024, "--skip-load", *data, *more, name=name)
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 1024 (TP 2 x PP 1 x DP 512)" in done.stdout
    assert scaled in done.stdout
    assert done.stdout.count("bytes allocated, as planned") == 3


def test_a_fault_of_the_data_is_one_line_of_the_dry_run(corpus, tmp_path):
    binary = corpus.with_name(f"{corpus.name}.bin")
    for path in corpus.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / binary.name).write_bytes(binary.read_bytes()[:-2])
    data = ("--train-data-path", tmp_path / corpus.name, "--valid-data-path", corpus)
    more = ("--pipeline-model-parallel-size", 2, "--layers", 4, "--width", 512)
    done = plan("--dry-run", "--world-size", 16, "--skip-load", *data, *more)
    assert done.returncode == 1 and not done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and f"{binary.name}: has" in lines[0] and "build the corpus again" in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--load runs/ziya2_13b/base: no checkpoint there"),
        (("--load", "runs/a base+runs/adapters"), "--load runs/adapters: no checkpoint there"),
        (("--tensor-model-parallel-size", 3), "--num-attention-heads 40 is no multiple of TP (3)"),
        (("--pipeline-model-parallel-size", 3), "--num-layers 40 is no multiple of PP (3)"),
        (("--global-batch-size", 12), "--global-batch-size 12 is no multiple of micro batch 1 x DP 8"),
        (("--skip-load", "--tokenizer-type", "SentencePieceTokenizer"), "tokenizer: no such file or folder"),
        (("--skip-load", "--width", 200), "--width 200: expected 5120 or a multiple of 256"),
        (("--context-parallel-size", 2), "the plan cannot follow --context-parallel-size"),
    ],
)
def test_what_arithmetic_can_tell_is_refused_before_the_trainer_starts(words, message):
    done = plan("--dry-run", "--world-size", 16, *words)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
