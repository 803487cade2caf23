"""The life of vLLM's processes, with a package in its place that starts one which nobody else ends: gone with the
engine's `with`, with a parent that is killed, and with a copy that is killed.

`make test-vllm` shows it on the real one.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.paths import ROOT
from support.processes import alive, wait_until_ended
from support.vllm_stand_in import started, write_package

from megatron_chimed.errors import InputError
from megatron_chimed.inference import vllm_engine
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.inference.vllm_engine import VllmEngine

REQUESTS = [Request([1] * (number + 1), SamplingParams(4, seed=number)) for number in range(7)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of the package in vLLM's place, found by the engine's processes."""
    write_package(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setattr(vllm_engine, "require_vllm", lambda: None)
    for name in ("CUDA_VISIBLE_DEVICES", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def model(tmp_path):
    """A folder whose config.json is a model's."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}))
    return folder


def processes_of(place) -> list[int]:
    """All processes of the package's models."""
    return [one[name] for one in started(place) for name in ("pid", "core")]


def wait_for(found) -> None:
    while not found():
        time.sleep(0.01)


@pytest.mark.parametrize("copies", [1, 2])
def test_the_engine_ends_with_its_with_block_and_leaves_no_trace_in_this_process(place, model, copies):
    environment = dict(os.environ)
    with VllmEngine(model, data_parallel=copies) as engine:
        answers = dict(answer for batch in engine.generate(REQUESTS, [2]) for answer in batch)
        assert len(started(place)) == copies and all(map(alive, processes_of(place)))
        assert os.getpid() not in processes_of(place)
    assert {n: (one.tokens, one.finished) for n, one in answers.items()} == {
        number: ([number + 1, number, 2], bool(number % 2)) for number in range(7)
    }
    wait_until_ended(processes_of(place))
    assert not any(map(alive, processes_of(place)))
    assert len(list(place.glob("*.ended"))) == copies, "vLLM was told to end"
    assert dict(os.environ) == environment and "vllm" not in sys.modules
    with pytest.raises(ChildProcessError, match="the inference engine has ended"):
        list(engine.generate(REQUESTS, [2]))


def test_each_copy_has_gpus_of_its_own_and_one_copy_those_that_are_visible(place, model):
    with VllmEngine(model, data_parallel=2, tensor_parallel=2, dtype="bfloat16"):
        found = started(place)
    assert sorted(one["gpus"] for one in found) == ["0,1", "2,3"]
    for one in found:
        assert one["settings"] == {
            "model": str(model), "dtype": "bfloat16", "tensor_parallel_size": 2, "skip_tokenizer_init": True,
        }  # fmt: skip
    with VllmEngine(model):
        assert [one["gpus"] for one in started(place) if one not in found] == [None]


def test_vllms_own_words_are_the_message_and_nothing_stays(place, model):
    (place / "refuse").touch()
    with VllmEngine(model) as engine, pytest.raises(InputError, match="^vllm: the prompt is too long$"):
        list(engine.generate(REQUESTS, [2]))
    (place / "fail").touch()
    with pytest.raises(InputError, match="^vllm: ValueError: no memory for the cache$"):
        VllmEngine(model)
    wait_until_ended(processes_of(place))  # the kernel takes a moment to end what was killed
    assert len(processes_of(place)) == 4 and not any(map(alive, processes_of(place)))


def test_a_copy_that_is_killed_is_one_line_and_its_own_processes_end(place, model):
    (place / "hold").touch()
    with VllmEngine(model, data_parallel=2) as engine:
        victim = started(place)[0]["pid"]
        answers = engine.generate(REQUESTS, [2])
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(ChildProcessError, match=r"^inference rank 0 was killed by signal 9[^\n]*$"):
            list(answers)
        wait_until_ended(processes_of(place))


PARENT = """
import sys
from megatron_chimed.inference import vllm_engine
from megatron_chimed.inference.request import Request, SamplingParams
vllm_engine.require_vllm = lambda: None
engine = vllm_engine.VllmEngine(sys.argv[1], data_parallel=2)
list(engine.generate([Request([1], SamplingParams(4))] * 2, [2]))
"""


@pytest.mark.parametrize("moment", ["start", "generate"])
def test_nothing_outlives_a_parent_that_is_killed(place, model, moment):
    (place / ("hold_start" if moment == "start" else "hold")).touch()
    with subprocess.Popen([sys.executable, "-c", PARENT, model]) as parent:
        pattern = "*.started" if moment == "start" else "*.asked"
        wait_for(lambda: len(list(place.glob(pattern))) == 2)
        assert all(map(alive, processes_of(place)))
        parent.kill()
    wait_until_ended(processes_of(place))


def test_without_vllm_the_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="vllm is not installed; install the extra `vllm`"):
        VllmEngine(tmp_path)
