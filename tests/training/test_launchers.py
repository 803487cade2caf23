"""The launchers, with stand-ins for Slurm, torchrun and the tools; tests/integration starts real ranks."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guards import tree

from megatron_chimed.commands.train import QUIET, count_gpus, launch
from megatron_chimed.errors import InputError
from megatron_chimed.stages.options import STAGES

ROOT = tree.ROOT
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
SRUN = "srun --kill-on-bad-exit=1 --cpu-bind=none"
STOPPED = 'touch "$MEGATRON_CHIMED_STOPPED_FILE"'
"""Of a task that has saved."""
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
    """What was called, a task without the words that note its code."""
    path = folder / "calls.txt"
    return re.sub(r"sh -c trap .+?\.failed ", "", path.read_text()).splitlines() if path.exists() else []


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


def test_a_task_of_a_slurm_step_takes_its_rank_from_it():
    command, _ = launch([*STAGE], {"NNODES": "2", "MASTER_ADDR": "n1", "SLURM_NODEID": "1"}, gpus=0, cores=1)
    assert command[command.index("--node-rank") + 1] == "1"


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "2", "SLURM_GPUS_ON_NODE": "8"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1,MIG-2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, 1),
        ({"SLURM_GPUS_ON_NODE": "2"}, 2),
        ({}, 8),
    ],
)
def test_gpus_are_those_that_were_given_and_else_those_of_the_machine(tmp_path, monkeypatch, environment, count):
    recorder(tmp_path, "nvidia-smi", "for n in 1 2 3 4 5 6 7 8; do echo GPU $n; done")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert count_gpus(environment) == count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"NODE_RANK": "0"}, "NNODES is 2 but no MASTER_ADDR is given"),
        ({"MASTER_ADDR": "n1"}, "NNODES is 2 but no NODE_RANK is given"),
        ({"NPROC": "many"}, "NPROC is 'many'; expected a number from 1"),
        ({"NODE_RANK": "0", "MASTER_ADDR": "n1", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'; expected a number from 1"),
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
    array = SLURM | {"SLURM_ARRAY_TASK_COUNT": "16", "SLURM_ARRAY_TASK_ID": "103", "SLURM_ARRAY_TASK_MIN": "100"}
    words = ("--input", "raw/*.jsonl", "--output-prefix", "c")
    done = run(tmp_path, "sh", "launch/slurm.sbatch", "corpus", *words, PYTHON="python", **array)
    assert done.returncode == 0, done.stderr
    tool = "python -m megatron_chimed corpus --input raw/*.jsonl --output-prefix c"
    assert calls(tmp_path) == [f"{SRUN} --nodes=1 --ntasks=1 {tool} --num-shards 16 --shard-index 3"]


def job(folder: Path, *words: str, srun: str = "", scontrol: str = "", **more: str) -> subprocess.CompletedProcess:
    """launch/slurm.sbatch on two nodes. srun, scontrol: what the stand-ins do besides."""
    recorder(folder, "srun", srun)
    recorder(folder, "scontrol", f'{scontrol}\n[ "$1" = requeue ] || {{ echo n1; echo n2; }}')
    return run(folder, "sh", "launch/slurm.sbatch", *words, **SLURM | more)


@pytest.mark.parametrize(
    ("srun", "code", "is_queued_again"),
    [
        ("exit 3", 3, False),
        (STOPPED, 0, True),
        (f"{STOPPED}; exit 1", 1, False),
        (f"{STOPPED}; exit 143", 143, False),
        ("exit 0", 0, False),
    ],
    ids=["fails", "was asked to stop", "a fault, then srun's SIGTERM", "a task was killed", "finishes"],
)
def test_a_job_is_queued_again_when_all_tasks_were_asked_to_stop_and_have_saved(tmp_path, srun, code, is_queued_again):
    done = job(tmp_path, "pretrain", "m", "s", srun=srun)
    assert done.returncode == code
    assert ("scontrol requeue 7" in calls(tmp_path)) == is_queued_again == ("is queued again" in done.stderr)
    assert not list(ROOT.glob(".slurm-7-*"))


@pytest.mark.parametrize(("first", "second"), [(3, 143), (137, 1), (3, 1)])
def test_a_job_has_the_code_of_the_task_that_failed_and_not_of_those_that_were_ended_for_it(tmp_path, first, second):
    """The first task fails, the second is ended for it, by SIGTERM (143) or by its own ranks, and srun says 143."""
    task = '"$1" "$2" "$3" "$4" sh -c'
    srun = f"shift 2; {task} 'exit {first}'; {task} 'exit {second}'; exit 143"
    done = job(tmp_path, "pretrain", "m", "s", srun=srun)
    assert done.returncode == first, done.stderr
    assert not list(ROOT.glob(".slurm-7-*"))


def test_a_job_that_slurm_does_not_queue_again_says_so(tmp_path):
    done = job(tmp_path, "pretrain", "m", "s", srun=STOPPED, scontrol='[ "$1" != requeue ] || exit 1')
    assert done.returncode == 75 and "not queued again" in done.stderr


def test_a_job_starts_again_no_more_often_than_its_limit(tmp_path):
    done = job(tmp_path, "pretrain", "m", "s", SLURM_RESTART_COUNT="101")
    assert done.returncode == 1 and "MAX_RESTARTS is 100" in done.stderr and not calls(tmp_path)
    assert job(tmp_path, "pretrain", "m", "s", SLURM_RESTART_COUNT="101", MAX_RESTARTS="101").returncode == 0


def test_a_script_that_is_no_job_and_one_without_a_command_are_refused(tmp_path):
    for words, more in ((["pretrain"], {"SLURM_JOB_ID": ""}), ([], {}), (["serve"], {})):
        done = job(tmp_path, *words, **more)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "error: " in done.stderr


def test_a_training_goes_to_all_nodes_and_any_other_command_to_one(tmp_path):
    job(tmp_path, "evaluate", "--model", "hf:x", PYTHON="python")
    assert calls(tmp_path) == [f"{SRUN} --nodes=1 --ntasks=1 python -m megatron_chimed evaluate --model hf:x"]
    for stage in STAGES:
        job(tmp_path, stage, "m", "s")
        assert calls(tmp_path)[-1] == f"{SRUN} launch/torchrun.sh {stage} m s"
    job(tmp_path, "sft", "m", "s", SRUN_ARGS="--container-image=i --label", IN_CONTAINER="apptainer exec i.sif")
    words = "--container-image=i --label apptainer exec i.sif launch/torchrun.sh sft m s"
    assert calls(tmp_path)[-1] == f"{SRUN} {words}"


def test_a_log_for_each_node(tmp_path):
    job(tmp_path, "sft", "m", "s", NODE_LOGS=str(tmp_path / "logs"))
    names = f"--open-mode=append --output={tmp_path}/logs/%x-%j-node%n.log"
    assert calls(tmp_path)[-1] == f"{SRUN} {names} launch/torchrun.sh sft m s" and (tmp_path / "logs").is_dir()


def test_a_server_runs_on_every_node_with_its_gpus_and_is_not_told_to_save(tmp_path):
    served = {"SLURM_GPUS_ON_NODE": "4", "SLURMD_NODENAME": "n1", "VLLM": str(recorder(tmp_path, "vllm"))}
    srun = 'kill -USR1 $PPID; sleep 0.3; shift 2; exec "$@"'
    done = job(tmp_path, "serve", "runs/hf", "--max-model-len", "4096", srun=srun, **served)
    flags = "--port 8000 --tensor-parallel-size 4 --max-model-len 4096 --host n1"
    assert done.returncode == 0 and calls(tmp_path)[-1] == f"vllm serve runs/hf {flags}"
    assert re.findall("base_url: (.*)", done.stderr) == ["http://n1:8000/v1", "http://n2:8000/v1"]


def test_a_job_tells_its_tasks_the_first_node_unless_it_is_told_another_address_and_no_loop_holds_its_input(tmp_path):
    shown = f'echo "at $MASTER_ADDR $MASTER_PORT, ${{MEGATRON_CHIMED_END_WITH_STDIN-unset}}" >>{tmp_path}/calls.txt'
    job(tmp_path, "sft", "m", "s", srun=shown, MEGATRON_CHIMED_END_WITH_STDIN="1")
    assert calls(tmp_path)[-1] == "at n1 20007, unset"
    job(tmp_path, "sft", "m", "s", srun=shown, MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    assert calls(tmp_path)[-1] == "at 10.0.0.1 1234, unset"


def test_a_job_tells_its_tasks_when_it_is_over_also_where_slurm_does_not(tmp_path):
    shown = f'echo "over at $SLURM_JOB_END_TIME" >>{tmp_path}/calls.txt'
    for printed, over_at in (("2026-11-30T10:00:00", "1796032800"), ("Unlimited", ""), ("", "")):
        recorder(tmp_path, "squeue", f"echo {printed}")
        job(tmp_path, "sft", "m", "s", srun=shown, TZ="UTC")
        assert calls(tmp_path)[-2:] == [f"{SRUN} launch/torchrun.sh sft m s", f"over at {over_at}"]
    assert "squeue --noheader --job=7 --format=%e" in calls(tmp_path)
    job(tmp_path, "sft", "m", "s", srun=shown, SLURM_JOB_END_TIME="12")
    assert calls(tmp_path)[-1] == "over at 12"


def free_neighbours() -> int:
    """A port of those that follow from a job's number which is free, as is the next one."""
    for port in range(25000, 29000, 2):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("", port))
            other.bind(("", port + 1))
            return port
    raise AssertionError("no free port")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_job_whose_port_is_taken_takes_the_next_one(tmp_path, host):
    shown = f'echo "at $MASTER_PORT" >>{tmp_path}/calls.txt'
    port = free_neighbours()
    number = {"SLURM_JOB_ID": str(port - 20000)}
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
        job(tmp_path, "sft", "m", "s", srun=shown, **number)
        assert calls(tmp_path)[-1] == f"at {port + 1}"
        job(tmp_path, "sft", "m", "s", srun=shown, MASTER_PORT=str(port), **number)
        assert calls(tmp_path)[-1] == f"at {port}", "what is given is left; the launcher says that it is taken"
    job(tmp_path, "sft", "m", "s", srun=shown, **number)
    assert calls(tmp_path)[-1] == f"at {port}"


@pytest.mark.parametrize(("known", "address"), [("exit 0", "n1"), ("exit 2", "10.0.0.7")])
def test_a_node_whose_name_has_no_address_is_reached_by_the_one_that_slurm_has(tmp_path, known, address):
    recorder(tmp_path, "getent", known)
    shown = f'echo "at $MASTER_ADDR" >>{tmp_path}/calls.txt'
    node = 'if [ "$1 $2 $3" = "show node n1" ]; then echo "   NodeAddr=10.0.0.7 NodeHostName=n1 Version=22"; exit; fi'
    job(tmp_path, "sft", "m", "s", srun=shown, scontrol=node)
    assert calls(tmp_path)[-1] == f"at {address}"


def test_the_signal_before_the_time_limit_stops_the_ranks_and_queues_the_job_again(tmp_path):
    recorder(tmp_path, "scontrol", "echo n1; echo n2")
    told = f"sleep 0.5; echo saved >>{tmp_path}/calls.txt; {STOPPED}; exit"
    saving = f"trap '{told}' USR1\nwhile :; do sleep 0.05; done"
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
        time.sleep(0.2)
        job.send_signal(signal.SIGUSR1)  # a second one ends nothing
        assert job.wait(timeout=60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert calls(tmp_path)[-2:] == ["saved", "scontrol requeue 7"]


def pipeline(folder: Path, recipe: str = RECIPE, **environment: str) -> subprocess.CompletedProcess:
    """launch/pipeline.sh on a recipe with recorders for Python, to which no training is finished, and the launcher."""
    untrained = 'case "$*" in *training.job*) exit 1 ;; esac'
    return run(
        folder,
        "launch/pipeline.sh",
        recipe,
        folder / "run",
        "Base",
        **{"PYTHON": str(recorder(folder, "python", untrained)), "LAUNCH": f"{folder}/bin/launch --wait"} | environment,
    )


IS_TRAINED = "python -m megatron_chimed.training.job"


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
    again = [call for call in again if not call.startswith(IS_TRAINED)]
    name = r"(?:-m megatron_chimed|--wait) ((?:pack |convert |verify )?\S+)"
    order = [re.search(name, call)[1] for call in again]
    data = ["corpus"] * 2 + ["pretrain"] + ["pack sft"] * 2 + ["sft"] + ["pack rewards"] * 3 + ["reward"]
    assert order == [*data, "rejection", "convert megatron-to-hf", "verify checkpoint"]
    assert "--sequence-length 4096" in again[3] and "--mode per-turn" in again[3]
    assert again[-2].endswith(f"--megatron {tmp_path}/run/rejection/round-01/train/selected --hf {tmp_path}/run/hf")
    assert again[-1].endswith("--tensor-parallel 2")


@pytest.mark.parametrize(("recipe", "template"), [(RECIPE, "chimed"), ("examples/qwen3_8b", "qwen3")])
def test_the_pipeline_packs_with_the_template_of_the_recipe(tmp_path, recipe, template):
    inputs(tmp_path)
    recorder(tmp_path, "launch")
    assert pipeline(tmp_path, recipe).returncode == 0
    packed = [call for call in calls(tmp_path) if " pack " in call]
    assert len(packed) == 5 and all(f" --template {template} " in call for call in packed)


def test_on_a_cluster_all_that_the_pipeline_runs_are_jobs_and_what_is_trained_is_none(tmp_path):
    inputs(tmp_path)
    recorder(tmp_path, "sbatch")
    recorder(tmp_path, "python")
    slurm = "sbatch --wait --nodes=2 --partition=a launch/slurm.sbatch"
    assert pipeline(tmp_path, LAUNCH=slurm).returncode == 0
    here = [call for call in calls(tmp_path) if not call.startswith("sbatch")]
    assert here and all(call.startswith(IS_TRAINED) for call in here)
    jobs = [call for call in calls(tmp_path) if call.startswith("sbatch")]
    one = "sbatch --wait --nodes=2 --partition=a --nodes=1"
    assert {call.split("launch/")[0].strip() for call in jobs} == {slurm[:-20].strip(), one, f"{one} --gpus-per-node=0"}
    assert [call for call in jobs if call.startswith(f"{one} launch")][0].split()[-3] == "rejection"
    (tmp_path / "calls.txt").unlink()
    assert pipeline(tmp_path, LAUNCH=slurm, PYTHON=str(recorder(tmp_path, "trained"))).returncode == 0
    assert not [call for call in calls(tmp_path) if re.search("sbatch (pretrain|sft|reward) ", call)]


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
