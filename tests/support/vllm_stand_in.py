"""Stands in for vLLM where it is not installed: modules of its names in this process, or a package on the disk for the
processes of the engine.

The package's model starts a process that outlives it, as vLLM's engine does, and writes down what it was given.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

from megatron_chimed.inference.vllm_worker import Copy

IDS, POSITIONS = 420, 128
SCHEDULER = types.SimpleNamespace(scheduler_config=types.SimpleNamespace(max_num_batched_tokens=16))


def put_in_place(monkeypatch, llm: type) -> None:
    """`vllm` in this process, with this class for its LLM; the engine's copies are in this process as well."""
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams, module.TokensPrompt, module.PoolingParams = llm, dict, dict, dict
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr("megatron_chimed.inference.vllm_engine.WorkerProcesses", Here)


def parts_of(num_ids: int = IDS, positions: int = POSITIONS) -> types.SimpleNamespace:
    """An LLM's llm_engine."""
    config = types.SimpleNamespace(get_vocab_size=lambda: num_ids, max_model_len=positions)
    core = types.SimpleNamespace(shutdown=lambda: None)
    return types.SimpleNamespace(model_config=config, engine_core=core, vllm_config=SCHEDULER)


class Here:
    """A copy of the model in this process; what goes to it and comes from it is JSON all the same."""

    def __init__(self, number: int, settings: dict, worker: str, environment: dict, patience: float):
        self.copy = Copy(**as_json(settings)["model"])
        self.said: Any = self.copy.limits()

    def send(self, request: dict) -> None:
        self.said = as_json(self.copy.answer(as_json(request)))

    def answer(self) -> Any:
        return self.said

    def close(self) -> None:
        self.copy.close()


def as_json(content: Any) -> Any:
    """What arrives of it on the other side of a socket."""
    return json.loads(json.dumps(content))


PACKAGE = """
import json, os, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # as vllm does
PLACE = Path(__file__).parent.parent
TokensPrompt = SamplingParams = PoolingParams = dict


class LLM:
    def __init__(self, **settings):
        self.core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        said = {"pid": os.getpid(), "core": self.core.pid, "settings": settings, "gpus": gpus}
        (PLACE / f"{os.getpid()}.part").write_text(json.dumps(said))
        os.rename(PLACE / f"{os.getpid()}.part", PLACE / f"{os.getpid()}.started")
        while (PLACE / "hold_start").exists():
            time.sleep(0.01)
        if (PLACE / "fail").exists():
            print("(EngineCore pid=7) ERROR 11-29 [core.py:1] Traceback (most recent call last):", file=sys.stderr)
            print("(EngineCore pid=7) ERROR 11-29 [core.py:9] ValueError: no memory for the cache", file=sys.stderr)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        config = SimpleNamespace(get_vocab_size=lambda: 420, max_model_len=128)
        scheduler = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_batched_tokens=16))
        core = SimpleNamespace(shutdown=self.shutdown)
        self.llm_engine = SimpleNamespace(model_config=config, engine_core=core, vllm_config=scheduler)

    def shutdown(self):
        self.core.kill()
        self.core.wait()
        (PLACE / f"{os.getpid()}.ended").touch()

    def generate(self, prompts, params, use_tqdm):
        assert sum(len(one["prompt_token_ids"]) for one in prompts) <= 16, "on a CPU this ends the real engine"
        (PLACE / f"{os.getpid()}.asked").touch()
        while (PLACE / "hold").exists():
            time.sleep(0.01)
        if (PLACE / "refuse").exists():
            raise ValueError("the prompt is\\ntoo long")
        one = lambda prompt, asked: SimpleNamespace(token_ids=(len(prompt["prompt_token_ids"]), asked["seed"] % 256, 2),
                                                    finish_reason="stop" if asked["seed"] % 2 else "length")
        return [SimpleNamespace(outputs=[one(*pair)]) for pair in zip(prompts, params)]

    def classify(self, prompts, pooling_params, use_tqdm):
        assert pooling_params == {"use_activation": False}
        return [SimpleNamespace(outputs=SimpleNamespace(probs=[sum(one["prompt_token_ids"]) / 8])) for one in prompts]
"""


def write_package(folder: Path) -> Path:
    """A package `vllm` for the engine's processes, found by PYTHONPATH; what it writes lies beside it."""
    (folder / "vllm/platforms").mkdir(parents=True)
    (folder / "vllm/__init__.py").write_text(PACKAGE.replace("\\\\n", "\\n"))
    text = "from types import SimpleNamespace\n\ncurrent_platform = SimpleNamespace(is_cpu=lambda: True)\n"
    (folder / "vllm/platforms/__init__.py").write_text(text)
    return folder


def started(folder: Path) -> list[dict]:
    """What each model of the package has written: pid, core (the process that it has started), settings, gpus."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.started"))]
