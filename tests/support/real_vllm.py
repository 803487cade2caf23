"""What the tests of the real vLLM share: tiny models with a tokenizer, servers of them, and processes that are left.

`make test-vllm` says by VLLM_TESTS=1 that this environment has vllm, and an hour of patience.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.inference.request import Generated, Request, SamplingParams
from megatron_chimed.records import Turn
from megatron_chimed.text.jinja import record
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import Template, load_template
from megatron_chimed.text.tokenizer import load_tokenizer
from support.chatml import write_chatml
from support.dialogues import make_dialogues
from support.exam_hf import write_answering_hf
from support.families import make_model
from support.processes import alive

NEEDED = pytest.mark.skipif(not os.environ.get("VLLM_TESTS"), reason="needs vLLM: make test-vllm")
SLOW = pytest.mark.timeout(1800)
SHAPE = {"hidden_size": 128, "num_hidden_layers": 2}  # heads of 32, the smallest that vLLM computes on a CPU
POSITIONS = 512
TOKENS = 48  # of an answer
MARK = "MEGATRON_CHIMED_TEST_OF_VLLM"
"""Variable that tells the processes of one test, and all that they start, from others."""


@dataclass(frozen=True)
class Model:
    """A model as Hugging Face folder (hf), as the checkpoint of it, and as the export of that, which is what serves."""

    hf: Path
    checkpoint: Path
    export: Path
    renderer: Renderer

    def dialogues(self, count: int, seed: int = 0) -> list[tuple[Turn, ...]]:
        """Prompts of one to three questions as turns. None has a special token in a text: behind a server it would be
        one, which it is not in the training."""
        found = (one.turns[:-1] for one in make_dialogues(3 * count, seed, most_turns=3, most_words=6))
        return [turns for turns in found if not any("<" in turn.text for turn in turns)][:count]

    def prompts(self, count: int, seed: int = 0) -> list[list[int]]:
        """The same as ids."""
        return [self.renderer.render_prompt(turns).tolist() for turns in self.dialogues(count, seed)]


def write_llama(folder: Path, positions: int = POSITIONS) -> Model:
    """A LLaMA-shaped model, random, whose answers are text, in the template chimed."""
    return _convert(write_answering_hf(folder / "base", positions, **SHAPE), folder, Template())


def write_qwen3(folder: Path) -> Model:
    """A Qwen3-shaped one in Qwen3's template."""
    base = write_chatml(folder / "base")
    ids = load_tokenizer(base).vocab_size
    model = make_model("Qwen3", {"vocab_size": ids, "head_dim": 32, "max_position_embeddings": POSITIONS})
    model.save_pretrained(base)
    return _convert(base, folder, load_template("qwen3"))


def _convert(base: Path, folder: Path, template: Template) -> Model:
    (base / "chat_template.jinja").write_text(record(template), encoding="utf-8")  # as if it had been trained so
    hf_to_megatron(base, folder / "megatron", progress=False)
    megatron_to_hf(folder / "megatron", folder / "export", progress=False)
    return Model(base, folder / "megatron", folder / "export", Renderer(template, load_tokenizer(folder / "export")))


def greedy_of_transformers(folder: Path, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The most likely ids behind each prompt, by transformers' own generation."""
    import torch

    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for prompt in prompts:
        given = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": tokens, "attention_mask": torch.ones_like(given)}
        found.append(model.generate(given, **settings)[0, len(prompt) :].tolist())
    return found


def answers(engine, requests: list[Request], stop: list[int]) -> list[Generated]:
    """The samples in the order of the requests."""
    found = dict(answer for batch in engine.generate(requests, stop) for answer in batch)
    return [found[number] for number in range(len(requests))]


def greedy(prompts: list[list[int]], tokens: int) -> list[Request]:
    """Requests for the most likely ids."""
    return [Request(prompt, SamplingParams(tokens, temperature=0.0)) for prompt in prompts]


def marked(mark: str) -> dict[int, str]:
    """{id: command line} of the living processes that have the mark in their environment, but this one."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            own = f"{MARK}={mark}".encode() in (path / "environ").read_bytes()
            if own and alive(int(path.name)) and int(path.name) != os.getpid():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    return found


def wait_until_none_is_left(mark: str, seconds: float = 60) -> None:
    """The test fails, naming them, when marked processes do not end."""
    end = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left


def asked_of(model: Model, count: int, **settings) -> list[Request]:
    """Requests with the turns of a server and the ids of an engine."""
    return [
        Request(model.renderer.render_prompt(turns).tolist(), SamplingParams(TOKENS, seed=number, **settings), turns)
        for number, turns in enumerate(model.dialogues(count, seed=1))
    ]


class Served:
    """A server of vLLM's own: url with /v1, place without; kill: as a machine that is gone."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path):
        self.process, self.log = process, log
        self.place = f"http://127.0.0.1:{port}"
        self.url = f"{self.place}/v1"

    def wait_until_ready(self) -> None:
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.place}/health", timeout=5):
                return
            time.sleep(0.5)

    def tokenize(self, messages: list[dict]) -> list[int]:
        """The ids that the server makes of a conversation."""
        body = json.dumps({"model": "chimed", "messages": messages, "add_generation_prompt": True}).encode()
        asked = urllib.request.Request(f"{self.place}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)["tokens"]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def serve(folder: Path, log: Path, *more: object) -> Iterator[Served]:
    """`vllm serve` of a folder under the name chimed, with more words; not ready yet, and gone behind this."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", folder, "--host", "127.0.0.1", "--port", port, "--dtype", "float32", *more]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *map(str, words), "--served-model-name", "chimed"]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    served = Served(process, port, log)
    try:
        yield served
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        served.kill()


def messages_of(turns: tuple[Turn, ...]) -> list[dict]:
    """Turns as clients send them."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]
