"""The launchers, with stand-ins for Slurm, torchrun and the tools; tests/integration starts real ranks."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guards import tree

from megatron_chimed.commands.train import QUIET, launch
from megatron_chimed.errors import InputError

ROOT = tree.ROOT
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
RECIPE = "examples/ziya2_13b"
INPUTS = ("documents/train", "documents/heldout", "sft/train", "sft/heldout")
INPUTS += ("reward/train", "reward/valid", "reward/test")


def stand_in(folder: Path, name: str, text: str) -> Path:
    """An executable shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def recorder(folder: Path, name: str, more: str = "") -> Path:
    """A command that writes its name and arguments to folder/calls.txt."""
    return stand_in(folder / "bin", name, f'echo "{name} $*" >>"{folder}/calls.txt"\n{more}')


def calls(folder: Path) -> list[str]:
    path = folder / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def run(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """A launcher with the stand-ins first on the path."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


STAGE = ("pretrain", "m.yaml", "s.yaml", "--lr", "1e-4")


def test_one_node_and_many_give_torchrun_their_place():
    more = {"NNODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "n1", "MASTER_PORT": "1234"}
    found = [launch([*STAGE], {"NPROC": "2"} | given, gpus=0, cores=8) for given in ({}, more)]
    start = [sys.executable, "-m", "megatron_chimed.training.launch"]
    ours = ["--nproc-per-node", "2", "-m", "megatron_chimed.training.rank", *STAGE]
    many = ["--nnodes", "4", "--node-rank", "3", "--master-addr", "n1", "--master-port", "1234"]
    assert [command for command, _ in found] == [[*start, "--standalone", *ours], [*start, *many, *ours]]
    assert found[0][1] == {"NPROC": "2", "OMP_NUM_THREADS": "4"} | QUIET


def test_ranks_are_the_gpus_or_two_and_what_is_set_is_left():
    for gpus, ranks in ((0, "2"), (8, "8")):
        command, environment = launch([*STAGE], {"NPROC": "", "OMP_NUM_THREADS": "3"}, gpus, cores=1)
        assert command[command.index("--nproc-per-node") + 1] == ranks and environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"NODE_RANK": "0"}, "NNODES is 2 but no MASTER_ADDR is given"),
        ({"MASTER_ADDR": "n1"}, "NNODES is 2 but no NODE_RANK is given"),
        ({"NPROC": "many"}, "NPROC is 'many'; expected a number from 1"),
    ],
)
def test_many_nodes_without_their_place_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        launch([*STAGE], {"NNODES": "2"} | given, gpus=0, cores=1)


def test_the_script_is_a_door_to_the_command(tmp_path):
    done = run(tmp_path, "launch/torchrun.sh", *STAGE, PYTHON=str(recorder(tmp_path, "python")))
    assert done.returncode == 0, done.stderr
    assert calls(tmp_path) == [f"python -m megatron_chimed train {' '.join(STAGE)}"]


def test_an_array_job_builds_its_shard_of_a_corpus(tmp_path):
    recorder(tmp_path, "srun")
    array = {"SLURM_ARRAY_TASK_COUNT": "16", "SLURM_ARRAY_TASK_ID": "103", "SLURM_ARRAY_TASK_MIN": "100"}
    words = ("--input", "raw/*.jsonl", "--output-prefix", "c")
    done = run(tmp_path, "sh", "launch/slurm.sbatch", "corpus", *words, PYTHON="python", **array)
    assert done.returncode == 0, done.stderr
    tool = "python tools/preprocess_data.py --input raw/*.jsonl --output-prefix c"
    assert calls(tmp_path) == [f"srun --kill-on-bad-exit=1 {tool} --num-shards 16 --shard-index 3"]


def test_a_job_that_fails_ends_with_its_code_and_is_not_queued_again(tmp_path):
    recorder(tmp_path, "srun", "exit 3")
    recorder(tmp_path, "scontrol", "echo n1; echo n2")
    done = run(tmp_path, "sh", "launch/slurm.sbatch", "pretrain", "m", "s", **SLURM)
    assert done.returncode == 3
    assert not [call for call in calls(tmp_path) if "requeue" in call]


def test_a_job_whose_ranks_were_asked_to_stop_is_queued_again(tmp_path):
    recorder(tmp_path, "srun", "exit 75")
    recorder(tmp_path, "scontrol", "echo n1; echo n2")
    done = run(tmp_path, "sh", "launch/slurm.sbatch", "pretrain", "m", "s", **SLURM)
    assert done.returncode == 0
    assert calls(tmp_path)[-1] == "scontrol requeue 7"


def test_the_signal_before_the_time_limit_stops_the_ranks_and_queues_the_job_again(tmp_path):
    recorder(tmp_path, "scontrol", "echo n1; echo n2")
    saving = f'trap "sleep 0.5; echo saved >>{tmp_path}/calls.txt; exit 75" USR1\nwhile :; do sleep 0.05; done'
    recorder(tmp_path, "srun", saving)
    environment = os.environ | SLURM | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = ["sh", "launch/slurm.sbatch", "sft", "m", "s"]
    job = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not any(call.startswith("srun") for call in calls(tmp_path)):
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)  # from the record of the call to its trap
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert calls(tmp_path)[-2:] == ["saved", "scontrol requeue 7"]


def pipeline(folder: Path, recipe: str = RECIPE, **environment: str) -> subprocess.CompletedProcess:
    """launch/pipeline.sh on a recipe with recorders for Python and for the launcher."""
    return run(
        folder,
        "launch/pipeline.sh",
        recipe,
        folder / "run",
        "Base",
        PYTHON=str(recorder(folder, "python")),
        LAUNCH=f"{folder}/bin/launch --wait",
        **environment,
    )


def inputs(folder: Path) -> None:
    """Empty files where the pipeline wants data."""
    for name in INPUTS:
        path = folder / "run" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_pipeline_runs_all_stages_in_order_and_again_from_where_it_stopped(tmp_path):
    inputs(tmp_path)
    recorder(tmp_path, "launch", 'case "$2" in reward) [ -e "$0.ok" ] ;; esac')
    assert pipeline(tmp_path).returncode != 0
    done = calls(tmp_path)
    assert done[-1] == f"launch --wait reward {RECIPE}/model.yaml {RECIPE}/reward.yaml"
    assert not [call for call in done if "rejection" in call]
    (tmp_path / "bin/launch.ok").touch()
    (tmp_path / "run/base").mkdir()  # the conversion is done; the other tools find out for themselves
    assert pipeline(tmp_path).returncode == 0
    again = calls(tmp_path)[len(done) :]
    assert not [call for call in again if "hf-to-megatron" in call] and "hf-to-megatron" in done[0]
    assert again[: len(done) - 1] == done[1:]
    names = [re.search(r"tools/(\w+)|--wait (\w+)", call).group(1, 2) for call in again]
    order = [tool or stage for tool, stage in names]
    data = ["preprocess_data"] * 2 + ["pretrain"] + ["pack_sft"] * 2 + ["sft"] + ["pack_rewards"] * 3 + ["reward"]
    assert order == [*data, "rejection_sampling", "convert_checkpoint", "verify_checkpoint"]
    assert "--sequence-length 4096" in again[3] and "--mode per-turn" in again[3]
    assert again[-2].endswith(f"--megatron {tmp_path}/run/rejection/round-01/train/selected --hf {tmp_path}/run/hf")
    assert again[-1].endswith("--tensor-parallel 2")


@pytest.mark.parametrize(("recipe", "template"), [(RECIPE, "chimed"), ("examples/qwen3_8b", "qwen3")])
def test_the_pipeline_packs_with_the_template_of_the_recipe(tmp_path, recipe, template):
    inputs(tmp_path)
    recorder(tmp_path, "launch")
    assert pipeline(tmp_path, recipe).returncode == 0
    packed = [call for call in calls(tmp_path) if "tools/pack_" in call]
    assert len(packed) == 5 and all(f" --template {template} " in call for call in packed)


def test_the_pipeline_names_a_missing_input_before_it_starts(tmp_path):
    inputs(tmp_path)
    (tmp_path / "run/reward/valid.jsonl").unlink()
    done = pipeline(tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{tmp_path}/run/reward/valid.jsonl: no such file" in done.stderr


@pytest.mark.parametrize("name", ["ziya2_13b", "qwen3_8b"])
def test_every_path_of_a_recipe_is_one_that_the_pipeline_makes(name):
    text = tree.read("launch/pipeline.sh")
    made = {"base", "base/tokenizer", "pretrain", "sft/run", "reward/run", "rejection"}
    made |= {f"corpus/{part}_text_document" for part in ("train", "heldout")}
    made |= {f"sft/{part}{end}" for part in ("train", "heldout") for end in ("", ".jsonl")}
    made |= {f"reward/{part}" for part in ("train", "valid", "test")}
    assert {"base", "corpus", "sft", "reward", "rejection"} <= set(re.findall(r"\$run/(\w+)", text))
    for path in (ROOT / "examples" / name).glob("*.yaml"):
        named = set(re.findall(rf"runs/{name}/([\w./]+)", path.read_text()))
        assert named <= made, path


def test_the_launchers_are_plain_shell():
    scripts = [path for path in tree.files() if path.startswith("launch/")]
    assert len(scripts) == 3
    for script in scripts:
        assert tree.read(script).startswith("#!/bin/sh\n"), script
        assert subprocess.run(["sh", "-n", ROOT / script], check=False).returncode == 0, script
        if shutil.which("shellcheck"):
            done = subprocess.run(["shellcheck", ROOT / script], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout
