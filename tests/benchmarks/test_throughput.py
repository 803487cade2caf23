"""The throughput benchmark: its arithmetic, its table, and one tiny round of every way that runs on a CPU."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from guards import tree
from megatron.training.training import num_floating_point_operations

sys.path.insert(0, str(tree.ROOT / "benchmarks/gpu"))
import figures  # noqa: E402

from megatron_chimed.plan import memory  # noqa: E402
from megatron_chimed.plan.layout import Layout  # noqa: E402


@pytest.mark.parametrize("shape", figures.SHAPES)
def test_operations_are_counted_as_megatron_counts_them(shape):
    model, sequence = figures.SHAPES[shape]
    args = SimpleNamespace(
        num_layers=model.layers, hidden_size=model.hidden, ffn_hidden_size=model.ffn, kv_channels=model.head_dim,
        num_attention_heads=model.heads, num_query_groups=model.num_query_groups, group_query_attention=True,
        swiglu=True, padded_vocab_size=model.vocab, seq_length=sequence, num_experts=None, mtp_num_layers=None,
        hybrid_layer_pattern=None,
        moe_ffn_hidden_size=None, moe_latent_size=None, moe_shared_expert_intermediate_size=None,
        multi_latent_attention=False, attention_output_gate=False, experimental_attention_variant=None,
        is_hybrid_model=False,
    )  # fmt: skip
    expected = num_floating_point_operations(args, 3)
    found = figures.throughput(model, sequence, 3 * sequence, 1.0, "?")
    assert found["tflops"] * 1e12 == pytest.approx(expected, rel=1e-12)
    assert (found["tokens_per_second"], found["mfu"]) == (3 * sequence, None)


def test_documents_that_do_not_see_each_other_need_less():
    whole, parts = (figures.throughput(figures.LLAMA_13B, document, 4096, 2.0, "H100") for document in (4096, 512))
    saved = 6 * 40 * 40 * 128 * (4096 - 512) * 4096 / 2.0
    assert (whole["tflops"] - parts["tflops"]) * 1e12 == pytest.approx(saved)
    assert whole["mfu"] == whole["tflops"] / 989


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce GTX 1080", None),
        ("CPU", None),
    ],
)  # fmt: skip
def test_the_peak_is_that_of_the_device(name, tera):
    assert figures.peak(name) == (None if tera is None else pytest.approx(tera * 1e12))


def test_the_most_layers_that_the_plan_has_room_for():
    room = 80 * memory.GIB
    layers = figures.layers_that_fit(figures.LLAMA_13B, 4096, 1, room)
    layout = Layout(1, 1, 1, 1, 1, 4096, distributed_optimizer=True, half=True)
    needed = [
        memory.worst(dataclasses.replace(figures.LLAMA_13B, layers=n), layout)[1].total for n in (layers, layers + 1)
    ]
    assert needed[0] <= room < needed[1] and 5 < layers < 15
    assert figures.layers_that_fit(figures.LLAMA_13B, 4096, 1, 0) == 1


def test_a_way_without_memory_has_a_line_and_ratios_are_against_ours():
    measured = {"layers": 4, "seconds": 0.5, "tokens_per_second": 10.0, "peak_bytes": memory.GIB, "mfu": 0.5}
    text = figures.table(
        {
            "stock": {"title": "stock", "layers": 1, "error": "out of memory"},
            "ours": measured | {"title": "ours", "tflops": 4.0},
            "other": measured | {"title": "other", "tflops": 3.0, "mfu": None},
        }
    )
    lines = text.splitlines()[2:]
    assert lines[0].startswith("| stock | 1 | out of memory |") and lines[1].endswith("| 50.0% | 1.00 | 1.00x |")
    assert lines[2].endswith("|  | 1.00 | 0.75x |")
    assert {line.count("|") for line in text.splitlines()} == {9}


def test_megatrons_ways_and_transformers_are_measured(tmp_path):
    """One step each of a model of one layer: a smoke test, whose figures mean nothing."""
    command = [sys.executable, "benchmarks/gpu/throughput.py", "--shape", "tiny", "--device", "cpu", "--layers", "1"]
    command += ["--warm-up", "0", "--steps", "1", "--ways", "stock", "transformers", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["results"].keys() == {"stock", "transformers"} and content["versions"].keys() >= {"torch"}
    for one in content["results"].values():
        assert one["layers"] == 1 and len(one["steps"]) == 1 and one["peak_bytes"] > 0 and one["mfu"] is None
    assert re.findall(r"^\| (\w+)", (tmp_path / "table.md").read_text(), re.M) == ["Megatron", "transformers"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "tiny"], "no CUDA device here; the twin for a CPU is --shape tiny --device cpu"),
        (["--shape", "tiny", "--device", "cpu", "--ways", "te"], "--ways te: cannot run here"),
    ],
)
def test_what_cannot_run_here_gives_one_line(tmp_path, words, message):
    command = [sys.executable, "benchmarks/gpu/throughput.py", *words, "--output", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and message in done.stderr
