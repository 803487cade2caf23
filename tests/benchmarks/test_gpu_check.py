"""`make gpu-check`: its arithmetic, its time, what it does with a way that fails, and its whole CPU twin."""

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from guards import tree
from megatron.training.training import num_floating_point_operations
from support.processes import wait_until_ended

sys.path.insert(0, str(tree.ROOT / "benchmarks/gpu"))
import check  # noqa: E402
import children  # noqa: E402
import figures  # noqa: E402
import measurements  # noqa: E402
import one_way  # noqa: E402

from megatron_chimed.errors import InputError  # noqa: E402
from megatron_chimed.plan import memory  # noqa: E402
from megatron_chimed.plan.layout import Layout  # noqa: E402

pytestmark = [pytest.mark.real_processes, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]
MEASUREMENTS = measurements.MEASUREMENTS
ALL = len(MEASUREMENTS)
NEED_A_GPU = {"flash", "varlen", "amp", "te"}
MACHINE = {"name": "NVIDIA H200", "packages": dict.fromkeys(measurements.PACKAGES, True)}
BARE = ("hypothesis", "xdist", "pytest_timeout", "chardet", "pyarrow", "matplotlib", "ray", "sklearn", "lm_eval")
"""What a machine with torch, transformers, sentencepiece, pytest and what Megatron imports may lack."""


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
    stock = figures.layers_that_fit(figures.LLAMA_13B, 4096, 1, room, figures.SCORE_BYTES)
    assert stock < layers, "scores are kept"


def test_each_gets_its_share_of_what_is_left_and_all_together_the_whole():
    now = [100.0]
    budget = measurements.Budget(60, lambda: now[0])
    assert budget.share(30, [20, 10]) == 30
    now[0] += 10  # less than its share: the others have more
    assert budget.share(20, [10]) == pytest.approx(50 * 2 / 3)
    now[0] += budget.share(20, [10])
    assert budget.share(10, []) == pytest.approx(budget.left()) == pytest.approx(50 / 3)
    now[0] += 100
    assert budget.share(10, []) == 0


def given(**changes) -> dict:
    args = SimpleNamespace(shape=None, device="cuda", layers=8, sequence=None, micro_batch=1, warm_up=0, steps=1)
    return check.settings(args, MACHINE | {"bytes": 0}) | changes


def everything(start, machine=MACHINE, clock=time.monotonic, seconds=480.0) -> dict[str, dict]:
    budget = measurements.Budget(seconds, clock)
    return dict(check.measure_all(list(MEASUREMENTS), given(), machine, Path("/nowhere"), budget, start))


@pytest.mark.parametrize("sequence", [-8, 0, 7])
def test_a_row_too_short_for_its_documents_is_one_line(sequence):
    program = [sys.executable, tree.ROOT / "benchmarks/gpu/check.py", "--device", "cpu", "--sequence", str(sequence)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 2 and f"--sequence {sequence}: a row has 8 documents" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("slowness", "measured"), [(1.0, ALL), (0.2, ALL), (8.0, 1)])
def test_all_of_it_ends_in_its_time_and_what_was_not_reached_is_named(slowness, measured):
    """Measurements that take all of their share, a fifth, and eight times as much."""
    now, limits = [0.0], {}

    def start(way, given, folder, limit):
        limits[way] = limit
        now[0] += slowness * limit
        return {"left_out": "a stub"}

    found = everything(start, clock=lambda: now[0])
    assert found.keys() == MEASUREMENTS.keys() and len(limits) == measured
    late = [one["left_out"] for name, one in found.items() if name not in limits]
    assert late == ["the 8 minutes were over"] * (ALL - measured)
    if slowness <= 1:
        assert now[0] <= 480 + 1e-6
        total = sum(one.weight for one in MEASUREMENTS.values())
        assert all(limit >= 480 * MEASUREMENTS[name].weight / total - 0.1 for name, limit in limits.items())


def test_what_is_not_installed_is_left_out_by_its_name():
    packages = MACHINE["packages"] | {"flash_attn": False, "transformer_engine": False}
    started = []

    def start(way, given, folder, limit):
        started.append(way)
        return {"left_out": "a stub"}

    found = everything(start, MACHINE | {"packages": packages})
    assert set(MEASUREMENTS) - set(started) == {"flash", "te"}
    assert found["flash"]["left_out"] == "flash-attn is not installed"
    assert found["te"]["left_out"] == "Transformer Engine is not installed"
    found = everything(start, MACHINE | {"packages": packages | {"megatron.core": False, "pytest": False}})
    assert found["tests"]["left_out"] == "pytest and megatron-core are not installed"
    assert found["stock"]["left_out"] == "megatron-core is not installed" and "a stub" in found["amp"]["left_out"]


@pytest.fixture
def a_way(monkeypatch):
    """Children that are forked from here, whose way "flex" is a function of a test."""
    monkeypatch.setattr(children, "context", lambda device: multiprocessing.get_context("fork"))

    def put(measure):
        monkeypatch.setitem(sys.modules, "way_of_a_test", SimpleNamespace(measure=measure))
        monkeypatch.setitem(one_way.MODULES, "flex", "way_of_a_test")

    return put


def test_a_way_that_fails_is_one_row_with_its_reason_and_the_others_go_on(a_way, tmp_path):
    def measure(way, given, path):
        raise ValueError("no such kernel")

    a_way(measure)
    good = {"steps": [0.5, 0.25, 1.0], "loss": 10.0, "peak_bytes": memory.GIB}

    def start(way, given, folder, limit):
        return children.run(way, given, tmp_path, limit) if way == "flex" else good

    found = everything(start)
    assert found["flex"]["left_out"] == "ValueError: no such kernel"
    assert [name for name, one in found.items() if "left_out" in one] == ["flex"]
    assert found["sdpa"]["seconds"] == 0.5 and found["sdpa"]["tokens_per_second"] == 4096 / 0.5
    training = {name: one for name, one in found.items() if one["part"] == "training"}
    lines = figures.table(training).splitlines()
    assert "| ours, packed, FlexAttention | 8 | ValueError: no such kernel | | | | | |" in lines
    assert {line.count("|") for line in lines} == {9} and len(lines) == 2 + len(training)
    assert next(line for line in lines if "| ours, whole rows" in line).endswith("| 1.00 | 1.00x |")


@pytest.mark.parametrize(("room", "fitted"), [(12, 12), (3, 3), (0, None)])
def test_as_many_layers_as_fit_are_found_where_memory_ends(a_way, tmp_path, room, fitted):
    tried = tmp_path / "tried"

    def measure(way, given, path):
        with open(tried, "a") as file:
            file.write(f"{given['layers']} ")
        if given["layers"] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"steps": [1.0]}

    a_way(measure)
    found = children.with_fewer_layers("flex", given(layers=12), tmp_path, 60)
    assert found == ({"layers": fitted, "steps": [1.0]} if fitted else {"layers": 1, "left_out": "out of memory"})
    assert tried.read_text().split() == [str(layers) for layers in range(12, (fitted or 1) - 1, -1)]


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_way_that_hangs_is_ended_with_what_it_has_started(a_way, tmp_path, monkeypatch, stubborn):
    """A test ends its job, which is a session of its own, when it is interrupted; a stubborn way is killed."""
    monkeypatch.setattr(children, "PATIENCE", 1)

    def measure(way, given, path):
        signal.signal(signal.SIGINT, signal.SIG_IGN if stubborn else signal.default_int_handler)
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(sleep, start_new_session=not stubborn)
        try:
            path.write_text(json.dumps({"passed": 3, "child": child.pid}))
            time.sleep(600)
        finally:
            child.kill()

    a_way(measure)
    found = children.run("flex", given(), tmp_path, 2)
    assert found["left_out"] == "not done in its share of the time, 2 s" and found["passed"] == 3
    wait_until_ended([found["child"]])


TESTS = """
import pytest

def test_passes(): pass

def test_fails(): assert False

@pytest.mark.skip
def test_skipped(): pass

@pytest.fixture
def broken(): raise OSError

def test_has_no_fixture(broken): pass
"""


def test_outcomes_of_tests_are_counted_and_a_failed_one_fails_the_command(tmp_path, monkeypatch):
    """In a child that starts anew, as on a GPU."""
    monkeypatch.setattr(children, "context", lambda device: multiprocessing.get_context("spawn"))
    (tmp_path / "test_some.py").write_text(TESTS)
    found = children.run("tests", given(tests=str(tmp_path)), tmp_path, 120)
    names = found.pop("names_of_failed")
    assert found == {"passed": 1, "failed": 2, "skipped": 1}
    assert [name.rpartition("::")[2] for name in names] == ["test_fails", "test_has_no_fixture"]
    with pytest.raises(InputError, match="2 of tests/gpu failed, .*test_fails first"):
        check.require_passed({"tests": {"names_of_failed": names}}, tmp_path)
    check.require_passed({"tests": {"names_of_failed": [], "left_out": "not done"}}, tmp_path)


def call(output: Path, *words: str, lacks: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess:
    """The command as on a machine that lacks packages."""
    finder = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Lacking(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        lacks = name.split('.')[0] in {lacks}\n"
        "        return None if lacks else PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Lacking if one is PathFinder else one for one in sys.meta_path]\n"
    )
    output.mkdir(exist_ok=True)
    (output / "sitecustomize.py").write_text(finder)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(output), **more}
    command = [sys.executable, "benchmarks/gpu/check.py", "--output", str(output), *words]
    return subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, timeout=280, env=environment)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """(results.json, report.md) of the whole command: one step each of a model of one layer, on a bare machine."""
    output = tmp_path_factory.mktemp("twin")
    words = ("--device", "cpu", "--layers", "1", "--warm-up", "0", "--steps", "1", "--minutes", "4.5")
    done = call(output, *words, lacks=BARE, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stderr
    return json.loads((output / "results.json").read_text()), (output / "report.md").read_text()


def test_every_way_that_can_run_on_a_cpu_is_measured_and_the_others_are_named(twin):
    content, report = twin
    results = content["results"]
    assert content["versions"].keys() >= {"torch"} and content["device"]["name"] == "CPU"
    assert results.keys() == MEASUREMENTS.keys()
    assert {name for name, one in results.items() if "left_out" in one} == NEED_A_GPU
    assert results["varlen"]["left_out"] == "needs a GPU"
    for one in results.values():
        assert one["title"] in report and one.get("left_out", "") in report
        if one["part"] == "training" and "left_out" not in one:
            assert one["layers"] == 1 and len(one["steps"]) == 1 and one["peak_bytes"] > 0 and one["mfu"] is None
    assert len(re.findall(r"^- ", report, re.M)) == len(NEED_A_GPU)
    assert re.findall(r"^## (\S+)", report, re.M) == ["tests/gpu", "Training:", "Short", "Generation,", "Left"]


def test_the_kernels_of_packed_rows_train_to_one_loss_on_a_bare_machine(twin):
    results = twin[0]["results"]
    assert results["flex"]["loss"] == pytest.approx(results["sdpa"]["loss"], rel=1e-6)
    assert results["ours"]["loss"] == pytest.approx(results["stock"]["loss"], rel=1e-6)
    assert abs(results["sdpa"]["loss"] / results["ours"]["loss"] - 1) > 1e-5, "the control: whole rows are another task"
    assert results["tests"]["skipped"] > 0 == results["tests"]["failed"]


def test_packed_and_padded_dialogues_have_the_same_real_tokens(twin):
    found = twin[0]["results"]["dialogues"]
    packed, padded = found["packed"], found["padded"]
    assert packed["positions"] == 2 * 512 >= found["real_tokens"] > 0.9 * packed["positions"]
    assert padded["positions"] > 1.2 * packed["positions"]
    for way in (packed, padded):
        assert way["tokens_per_second"] * way["seconds"] == pytest.approx(found["real_tokens"])


def test_texts_of_generation_are_compared(twin):
    batches = twin[0]["results"]["generation"]["batches"]
    assert {size: batch["texts"] for size, batch in batches.items()} == {"1": 1, "64": 64}
    assert batches["1"]["equal"] == 1 and batches["64"]["equal"] >= 60
    assert all(rate > 0 for batch in batches.values() for rate in batch["tokens_per_second"].values())


def test_without_torch_and_megatron_each_is_left_out_in_one_line(tmp_path):
    done = call(tmp_path, "--device", "cpu", lacks=("torch", "megatron"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {one["left_out"] for name, one in found.items() if name not in ("te", "flash")} == {
        "torch and megatron-core are not installed",
        "torch is not installed",
    }


def test_without_a_gpu_one_line_names_the_twin(tmp_path):
    done = call(tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "no CUDA device here, or no torch; the twin for a CPU is --device cpu" in done.stderr
