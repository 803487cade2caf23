"""Our layers against Megatron's local ones, and packed rows against separate documents, on one and two ranks."""

import json
import os
import subprocess
import sys

import pytest
from support.forked import ON_CPU
from support.paths import TESTS

WORKER = TESTS / "support" / "model_worker.py"


@pytest.fixture(scope="module", params=[1, 2], ids=["TP1", "TP2"])
def figures(request):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={request.param}",
        WORKER,
    ]
    done = subprocess.run(
        command, env=os.environ | ON_CPU | {"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES "))
    return json.loads(line.removeprefix("FIGURES "))


@pytest.mark.parametrize("model", ["gqa", "mha"])
def test_dense_attention_equals_megatrons_local_attention(figures, model):
    assert figures[model]["dense"] <= 1e-6


@pytest.mark.parametrize("model", ["gqa", "mha"])
def test_a_packed_row_equals_its_documents_apart(figures, model):
    assert figures[model]["packed"] <= 1e-6
    assert figures[model]["packed_gradients"] <= 1e-5


@pytest.mark.parametrize("model", ["gqa", "mha"])
def test_packing_without_boundaries_differs(figures, model):
    assert figures[model]["unmasked"] > 1e-2


def test_dropout_masks_agree_where_they_must(figures):
    assert figures["dropout"] == dict.fromkeys(("ranks_agree", "draws_differ", "restored", "heads_differ"), True)


def test_the_most_likely_token_is_found_over_all_ranks(figures):
    assert figures["argmax"] is True
