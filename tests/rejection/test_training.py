"""How a round starts its fine-tuning, with a script for the launcher; tests/integration has real ones."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from megatron_chimed.errors import STOPPED_FILE
from megatron_chimed.rejection.config import LoopConfig, read_config
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.steps import evaluate_heldout, generate, score, train
from megatron_chimed.rejection.training import fine_tune
from megatron_chimed.steps import identify

LOOP = """
import sys
from pathlib import Path
from megatron_chimed.errors import exit_cleanly
from megatron_chimed.rejection.config import read_config
from megatron_chimed.rejection.training import fine_tune
config = read_config(sys.argv[1])
folder = Path(sys.argv[1]).parent
exit_cleanly(lambda: fine_tune(config, "start", Path("packed"), folder / "train/selected", "hash"), "loop")
"""


def loop(folder: Path, script: str, launcher: str = "{0}") -> LoopConfig:
    """A loop whose launcher is a shell script. launcher: the command, of the script's path."""
    path = folder / "a launcher"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    names = ("output", "start", "reward", "tokenizer", "model", "stage")
    settings = {name: name for name in names} | {"dialogues": ["d"], "heldout": ["h"]}
    settings["training"] = {"launcher": launcher.format(f"'{path}'"), "ranks": 3}
    (folder / "loop.yaml").write_text(yaml.safe_dump(settings))
    return read_config(folder / "loop.yaml")


SAVES = 'mkdir -p "$save" && echo 4 >"$save/latest_checkpointed_iteration.txt"'


def test_a_launcher_may_be_several_words_as_for_a_job_that_is_waited_for(tmp_path):
    script = f'echo "$*" $NPROC >"{tmp_path}/called"; save={tmp_path}/train/selected; {SAVES}'
    config = loop(tmp_path, script, launcher="{0} --wait 'launch/a script'")
    assert fine_tune(config, "start", Path("packed"), tmp_path / "train/selected", "hash") == 4
    called = (tmp_path / "called").read_text().split()
    assert called[:6] == ["--wait", "launch/a", "script", "sft", "model", "stage"] and called[-1] == "3"


def test_of_adapters_with_a_named_base_both_are_what_a_step_is_made_from_and_the_training_loads_them(tmp_path):
    for name in ("base", "lora", "reward", "packed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    config = loop(tmp_path, f'echo "$*" >"{tmp_path}/called"; save={tmp_path}/train/selected; {SAVES}')
    start, reward = f"{tmp_path}/base+{tmp_path}/lora", f"{tmp_path}/base+{tmp_path}/reward"
    config = replace(config, paths=replace(config.paths, start=start, reward=reward, heldout=[], control=False))
    tokenizer = SimpleNamespace(fingerprint="")
    first, zeroth = (RoundContext(config, SimpleNamespace(tokenizer=tokenizer, template=tokenizer), n) for n in (1, 0))
    named = {
        "start": (train.inputs, first), "model": (generate.inputs, first), "reward": (score.inputs, first),
        "models": (evaluate_heldout.inputs, zeroth),
    }  # fmt: skip

    def identities() -> dict[str, list[str]]:
        return {key: [identify(path) for path in inputs(ctx)[key]] for key, (inputs, ctx) in named.items()}

    before = identities()
    (tmp_path / "base/weights").write_text("another")
    assert all(one != before[key] for key, one in identities().items())
    fine_tune(config, first.previous.checkpoint, tmp_path / "packed", tmp_path / "train/selected", "hash")
    assert f" --load {start} --finetune " in (tmp_path / "called").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_loop_that_its_job_stops_waits_for_the_training_to_save_and_its_file_is_the_loops_own(tmp_path, number):
    """The training's own stop ends with 75: the loop would take 0 for the end of it."""
    saving = (
        f'echo "file: ${STOPPED_FILE}" >"{tmp_path}/called"; cat >/dev/null; sleep 1; echo saved >>"{tmp_path}/called"'
    )
    loop(tmp_path, f"{saving}; exit 75")
    environment = os.environ | {STOPPED_FILE: str(tmp_path / "stopped")}
    called = tmp_path / "called"
    with subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path / "loop.yaml")], env=environment) as process:
        deadline = time.monotonic() + 60
        while not called.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    assert called.read_text() == "file: \nsaved\n" and (tmp_path / "stopped").exists()
