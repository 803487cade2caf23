"""An OpenAI-compatible endpoint for a Hugging Face folder, by vLLM where it is installed, else by transformers.

Both render prompts by a chat template, a Jinja text, and parse special tokens in it. `chat_template` writes that of our
own template.
"""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_chimed.checkpoints import split_adapter
from megatron_chimed.convert.stored import stored_dtype
from megatron_chimed.convert.tokenizer_files import generation_config
from megatron_chimed.errors import InputError
from megatron_chimed.inference.open import split_name
from megatron_chimed.jsonl import write_json
from megatron_chimed.text.jinja import CHAT_TEMPLATE, chat_template
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

HOST = "127.0.0.1"
CHAT_KINDS = ("hf", "megatron")
NEEDED = ("fastapi", "uvicorn", "openai", "pydantic", "accelerate")
"""What the server of transformers imports."""


def served_name(folder: Path) -> str:
    """The name that clients give, from that of the folder; "@" and ":" would mean something to the server."""
    return re.sub(r"[^\w.-]", "-", folder.resolve().name)


@contextlib.contextmanager
def with_template(folder: Path, text: str, stop_ids: Sequence[int] = ()) -> Iterator[Path]:
    """A folder, its name the served one, with links to all files of a model, this chat template, and a generation
    config with these ids at which an answer ends, if any; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="megatron_chimed-") as place:
        view = Path(place) / served_name(folder)
        view.mkdir()
        for path in folder.resolve().iterdir():
            if path.name != CHAT_TEMPLATE:
                (view / path.name).symlink_to(path)
        (view / CHAT_TEMPLATE).write_text(text, encoding="utf-8")
        if stop_ids:
            content = generation_config(folder, {}, stop_ids)
            (view / "generation_config.json").unlink(missing_ok=True)
            write_json(view / "generation_config.json", content)
        yield view


def server_command(
    name: str, port: int, dtype: str, tensor_parallel: int, seed: int, stored: str = "auto"
) -> list[str]:
    """The command that serves the folder `name` of its working folder under that name, on loopback alone.

    stored: the type of its weights, which stands for the dtype "auto" where vLLM's own would make bfloat16 of float32.
    Raises InputError where neither server is installed, naming what to install.
    """
    by_vllm = importlib.util.find_spec("vllm") is not None
    dtype = stored if by_vllm and dtype == "auto" else dtype
    common = ["serve", name, "--host", HOST, "--port", str(port), "--dtype", dtype]
    if by_vllm:
        more = ["--tensor-parallel-size", str(tensor_parallel), "--seed", str(seed)]
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", *common, "--served-model-name", name, *more]
    if tensor_parallel > 1:
        raise InputError("--tensor-parallel with --serve needs vllm, which is not installed; leave it out")
    absent = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if absent:
        raise InputError(
            f"--serve needs {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed: "
            "pip install -e '.[serve]' (or vllm, into an environment of its own)"
        )
    return [sys.executable, "-m", "transformers.cli.transformers", *common, "--default-seed", str(seed)]


def _whole_folder(model: str) -> Path:
    """The folder of hf:DIR. Raises InputError for a checkpoint, and for adapters beside their base."""
    kind, place = split_name(model, CHAT_KINDS)
    folder, base = split_adapter(place)
    if kind != "hf":
        raise InputError(
            "--serve takes hf:DIR; export the checkpoint with chimed convert megatron-to-hf (adapters: with --merge)"
        )
    if base is not None:
        raise InputError(
            f"--model {model}: --serve takes one whole folder, not adapters beside their base; merge them first: "
            f"chimed convert megatron-to-hf --megatron RUN --hf {folder}-merged --merge, RUN being their checkpoint"
        )
    return folder


def serve(
    model: str, template: Template, *, port: int, dtype: str = "auto", tensor_parallel: int = 1, seed: int = 0
) -> int:
    """Serve hf:DIR at http://127.0.0.1:PORT/v1 until it is interrupted; the server's exit code.

    Raises InputError for another kind of model, a folder without a fitting tokenizer, or where no server is installed.
    """
    folder = _whole_folder(model)
    command = server_command(served_name(folder), port, dtype, tensor_parallel, seed, stored_dtype(folder))
    text, ends = chat_template(folder, template), Renderer(template, load_tokenizer(folder)).stop_ids
    with with_template(folder, text, ends) as view:
        print(f"model {view.name!r} at http://{HOST}:{port}/v1, by {command[2].split('.')[0]}", flush=True)
        # transformers lists the models of the hub's cache, and fails where that folder is missing.
        settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(view.parent), "VLLM_NO_USAGE_STATS": "1"}
        with subprocess.Popen(command, cwd=view.parent, env=os.environ | settings) as server:
            signal.signal(signal.SIGTERM, lambda *_: server.terminate())
            with contextlib.suppress(KeyboardInterrupt):  # which the server gets as well
                server.wait()
            return 0 if server.wait() in (0, -signal.SIGINT, 130) else 1
