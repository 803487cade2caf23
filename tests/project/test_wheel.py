"""The wheel in an empty environment, outside of a clone: a tiny model is made, trained and exported by `chimed`."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from guards import tree
from support.checkpoints import write_hf
from support.dialogues import make_dialogues, write_dialogues
from support.forked import ON_CPU
from support.job import STAGE

pytestmark = [pytest.mark.cpu, pytest.mark.real_processes]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with the wheel alone; other packages are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tree.files():
        if name.startswith("megatron_chimed/") or "/" not in name:
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tree.ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("megatron_chimed-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=60)
    python = folder / "venv/bin/python"
    install = [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (packages,) = (folder / "venv/lib").glob("python3*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    return folder / "venv"


@pytest.fixture
def call(environment, tmp_path, monkeypatch):
    """Runs `chimed` of the environment in an empty folder, and gives what it prints."""
    monkeypatch.chdir(tmp_path)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*words: object) -> str:
        command = [environment / "bin/chimed", *map(str, words)]
        done = subprocess.run(
            command, env=variables | ON_CPU | {"NPROC": "1"}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
        return done.stdout

    return run


def test_the_package_is_that_of_the_wheel(environment, tmp_path):
    command = [environment / "bin/python", "-c", "import megatron_chimed; print(megatron_chimed.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60)
    assert Path(done.stdout.strip()).is_relative_to(environment), done
    packages = Path(done.stdout.strip()).parent
    wanted = {name for name in tree.files() if name.startswith("megatron_chimed/")}
    missing = {name for name in wanted if not (packages.parent / name).is_file()}
    assert not missing


def test_a_model_is_made_trained_and_exported_in_an_empty_folder(call, tmp_path):
    assert "chimed pack sft" in call("--help")
    texts = [{"text": turn.text} for dialogue in make_dialogues(80) for turn in dialogue.turns]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    write_dialogues(tmp_path / "dialogues.jsonl", make_dialogues(40))
    call("tokenizer", "--input", "texts.jsonl", "--vocab-size", "400", "--output", "tokenizer")
    tokenizer = ("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", "tokenizer/tokenizer.model")
    call("corpus", "--input", "texts.jsonl", "--output-prefix", "corpus", *tokenizer, "--append-eod", "--workers", 1)
    assert "whole and unaltered" in call("verify", "corpus", "corpus")
    pack = ("--input", "dialogues.jsonl", "--tokenizer", "tokenizer/tokenizer.model", "--sequence-length", 64)
    call("pack", "sft", *pack, "--output", "packed", "--workers", 0)
    assert json.loads((tmp_path / "packed/manifest.json").read_text())["rows"] > 5
    write_hf(tmp_path / "hf", vocab_size=400, num_hidden_layers=2)
    call("convert", "hf-to-megatron", "--hf", "hf", "--megatron", "base")
    stage = STAGE | {"train-iters": 2, "eval-iters": 0, "split": "100,0,0"}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({"megatron": stage}))
    plan = call("plan", "base/model.yaml", "sft.yaml", "--gpus", 2, *tokenizer)
    assert "GiB" in plan
    call(
        "train",
        "sft",
        "base/model.yaml",
        "sft.yaml",
        "--load",
        "base",
        "--data-path",
        "packed",
        "--save",
        "run",
        *tokenizer,
    )
    assert (tmp_path / "run/latest_checkpointed_iteration.txt").read_text() == "2"
    call("convert", "megatron-to-hf", "--megatron", "run", "--hf", "back")
    assert "one model" in call("verify", "checkpoint", "--hf", "back", "--megatron", "run")
