"""What the plan computes against what Megatron builds, and the dry run of the real trainer."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from job import ON_CPU, ROOT, Job, write_corpus

from megatron_chimed.plan import memory
from megatron_chimed.plan.layout import Layout
from megatron_chimed.plan.model import Model

WORKER = Path(__file__).with_name("plan_worker.py")

PLAIN = {"layers": 2, "hidden": 64, "ffn": 160, "heads": 4, "groups": 4, "head_dim": 16, "vocab": 250}
GROUPED = PLAIN | {"groups": 2, "head_dim": 24, "vocab": 1000, "ffn": 100}
CASE = {"sizes": PLAIN, "tied": False, "head": "lm", "qk_norm": False, "multiple": 128, "half": False}
CASE |= {"tp": 1, "pp": 1, "dp": 1, "last": False, "distributed_optimizer": False}
HALF = {"half": True, "distributed_optimizer": True}

CASES = [
    CASE | {"sizes": sizes, "tied": tied, "tp": tp, "qk_norm": sizes is GROUPED}
    for sizes, tied, tp in itertools.product((PLAIN, GROUPED), (False, True), (1, 2))
]
CASES += [CASE | {"half": half, "distributed_optimizer": d} for half, d in itertools.product((False, True), repeat=2)]
CASES += [
    CASE | {"sizes": GROUPED, "dp": 3, "tp": 2, "distributed_optimizer": True},
    CASE | HALF | {"sizes": GROUPED, "dp": 5, "tp": 2, "multiple": 1, "qk_norm": True},
    CASE | HALF | {"head": "reward", "dp": 512, "tied": True},
    CASE | HALF | {"pp": 2, "dp": 3, "tied": True, "sizes": GROUPED},
    CASE | HALF | {"pp": 2, "dp": 3, "tied": True, "sizes": GROUPED, "last": True},
    CASE | HALF | {"pp": 2, "tp": 2, "last": True, "head": "reward", "tied": True},
]


def planned(case: dict) -> dict[str, int]:
    """The same figures by arithmetic."""
    names = ("tied", "head", "qk_norm")
    model = Model(**case["sizes"], vocab_multiple=case["multiple"], **{name: case[name] for name in names})
    tp, pp, stage = case["tp"], case["pp"], case["pp"] - 1 if case["last"] else 0
    layout = Layout(
        tp * pp * case["dp"], tp, pp, 1, 1, 64, half=case["half"], distributed_optimizer=case["distributed_optimizer"]
    )
    states = memory.states(model, layout, stage)
    return dict(zip(("weights", "gradients", "optimizer"), states, strict=True)) | {
        "parameters": model.parameters(tp, pp, stage)
    }


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
