"""Train one stage with so many ranks on this machine: its GPUs, else two ranks on the CPU.

The same command again continues from the newest checkpoint in --save. These variables are heeded:

  NPROC        ranks on this machine
  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
               on NNODES machines the same command on each, with its own NODE_RANK from 0 and the MASTER_ADDR of
               machine 0 (MASTER_PORT: 29500); a task of a Slurm step takes its NODE_RANK from Slurm
  MEGATRON_CHIMED_STOP_SECONDS
               time to save for ranks that were asked to stop (600; in a Slurm job, what is left of it)
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from megatron_chimed.errors import STOP_SIGNALS, InputError
from megatron_chimed.stages.options import STAGES
from megatron_chimed.workers import count_cores

EXAMPLE = """examples:
  chimed train pretrain MODEL.yaml STAGE.yaml --train-iters 20
  NPROC=2 chimed train sft MODEL.yaml STAGE.yaml --load runs/base --save runs/sft
  NNODES=2 NODE_RANK=1 MASTER_ADDR=10.1.2.3 chimed train ...
What follows the YAML files overrides Megatron's arguments."""

QUIET = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONWARNINGS": "ignore"}
"""Megatron asks for the first when TP > 1; the second silences upstream's deprecation notes: "default" shows them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.allow_abbrev = False  # what is no flag of ours is one of Megatron's
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("model", metavar="MODEL.yaml")
    parser.add_argument("stage_yaml", metavar="STAGE.yaml")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--megatron-arg value ...")


def run(args: argparse.Namespace) -> None:
    """Become the launcher: its signals and its exit code are this command's."""
    command, environment = launch(
        [args.stage, args.model, args.stage_yaml, *args.overrides], os.environ, count_gpus(), count_cores()
    )
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the launcher, which takes seconds, can heed them
    os.execve(command[0], command, environment)


def launch(argv: list[str], environment: Mapping[str, str], gpus: int, cores: int) -> tuple[list[str], dict[str, str]]:
    """(command, environment) that start the ranks of a training.

    argv: ``[stage, model YAML, stage YAML, overrides ...]``. Raises InputError for a variable that is missing or no
    number.
    """
    ranks = _number(environment, "NPROC", gpus or 2)
    nodes = _number(environment, "NNODES", 1)
    threads = str(max(1, cores // ranks))
    defaults = QUIET | {"OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "megatron_chimed.training.launch"]
    if nodes == 1:
        command += ["--standalone"]
    else:
        place = {"NODE_RANK": environment.get("NODE_RANK") or environment.get("SLURM_NODEID")}
        place |= {"MASTER_ADDR": environment.get("MASTER_ADDR")}
        for name, value in place.items():
            if not value:
                raise InputError(f"NNODES is {nodes} but no {name} is given; set it")
        command += ["--nnodes", str(nodes), "--node-rank", place["NODE_RANK"]]
        command += ["--master-addr", place["MASTER_ADDR"]]
        command += ["--master-port", str(_number(environment, "MASTER_PORT", 29500))]
    command += ["--nproc-per-node", str(ranks), "-m", "megatron_chimed.training.rank", *argv]
    return command, defaults | {name: value for name, value in environment.items() if value or name not in defaults}


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A variable that is a number from 1. Raises InputError."""
    text = environment.get(name) or str(default)
    if not text.isdecimal() or not int(text):
        raise InputError(f"{name} is {text!r}; expected a number from 1")
    return int(text)


def count_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """The GPUs that are ours: those that CUDA would show us, else those that Slurm gave us, else the machine's."""
    if (shown := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in shown.split(",")]
        end = next((place for place, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
        return end  # as CUDA reads it: what follows a name that is none is not seen
    if (given := environment.get("SLURM_GPUS_ON_NODE", "")).isdecimal():
        return int(given)
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    except OSError:
        return 0
    return sum(line.startswith("GPU") for line in done.stdout.splitlines())
