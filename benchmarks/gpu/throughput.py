"""One GPU in training: our layers against Megatron's local ones, transformers and Transformer Engine, each in a process
of its own. Writes results.json and table.md.

As many 13B-shaped layers as fit at 4,096 tokens, by the plan's arithmetic; a way that runs out of memory is tried with
one layer less, and so on. With --shape tiny --device cpu it is its own small twin, which shows that it
runs, and how the ways compare on a CPU; it says nothing about a GPU.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from figures import FORMULA, SHAPES, layers_that_fit, table, throughput

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.jsonl import atomic_output, read_json, write_json
from megatron_chimed.training.run_record import git_state

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_MEMORY = 3
TITLES = {
    "stock": "Megatron, local layers as they come",
    "ours": "ours, pip only",
    "packed": "ours, rows of eight documents that do not see each other",
    "transformers": "transformers, {dtype} weights and moments",
    "amp": "transformers, float32 weights under autocast",
    "te": "ours on Transformer Engine",
}
PACKAGES = ("torch", "megatron-core", "transformers", "transformer-engine", "flash-attn", "apex")


def child(way: str, given: dict[str, Any], folder: Path, device: str) -> tuple[int, Path]:
    """Run one way; (exit code, its JSON file). All of its output is in FOLDER/WAY.log."""
    path = folder / f"{way}.json"
    path.unlink(missing_ok=True)
    script = str(Path(__file__).with_name("one_way.py"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if device == "cpu":  # one thread: the ways compare better on a machine with other work
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with open(folder / f"{way}.log", "w") as log:
        command = [sys.executable, script, way, json.dumps(given), str(path)]
        code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode
    return code, path


def measure(way: str, given: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """The steps of one way, with as many of the layers as fit. Raises InputError when it fails otherwise."""
    layers = given["layers"]
    title = TITLES[way].format(dtype=given["dtype"])
    while True:
        print(f"{title}, {layers} layers ...", file=sys.stderr, flush=True)
        code, path = child(way, given | {"layers": layers}, folder, device)
        if code != OUT_OF_MEMORY:
            break
        if layers == 1:
            return {"title": title, "layers": 1, "error": "out of memory"}
        layers -= 1
    if code:
        raise InputError(f"{title}: ended with code {code}; its output is in {folder / way}.log")
    found = read_json(path)
    if not abs(found["loss"] / math.log(given["vocab"]) - 1) < 0.2:  # random tokens: nothing can be learnt of them
        raise InputError(f"{title}: a loss of {found['loss']} on random tokens; this is no training")
    return {"title": title, "layers": layers, **found}


def figures(way: str, rounds: list[dict[str, Any]], given: dict[str, Any], name: str) -> dict[str, Any]:
    """What follows from the steps of all rounds of a way on the device of this name."""
    first = rounds[0]
    if "error" in first:
        return first
    model = dataclasses.replace(SHAPES[given["shape"]][0], layers=first["layers"])
    document = given["document"] if way == "packed" else given["sequence"]
    steps = [seconds for one in rounds for seconds in one["steps"]]
    median = statistics.median(steps)
    rates = throughput(model, document, given["sequence"] * given["micro_batch"], median, name)
    peak = max(one["peak_bytes"] for one in rounds)
    return first | rates | {"seconds": median, "steps": steps, "peak_bytes": peak}


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def ways(wanted: list[str] | None, machine: dict[str, Any], dtype: str) -> list[str]:
    """Those that can run here, of those that are wanted."""
    able = [way for way in TITLES if way != "te" or machine.get("transformer_engine")]
    able = [way for way in able if way != "amp" or dtype != "float32"]
    if missing := set(wanted or []) - set(able):
        raise InputError(f"--ways {', '.join(sorted(missing))}: cannot run here; give of {', '.join(able)}")
    return [way for way in able if not wanted or way in wanted]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python benchmarks/gpu/throughput.py --output runs/throughput\n"
        "  python benchmarks/gpu/throughput.py --shape tiny --device cpu --output runs/throughput_cpu",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for results, table and logs")
    parser.add_argument("--shape", choices=SHAPES, default="13b", help="of the layers (13b)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(cuda)")
    parser.add_argument("--layers", type=int, help="instead of as many as fit, or all of a shape on a CPU")
    parser.add_argument("--micro-batch", type=int, default=1, help="rows of a step (1)")
    parser.add_argument("--ways", nargs="+", choices=TITLES, metavar="WAY", help=f"of {', '.join(TITLES)} (all)")
    parser.add_argument("--rounds", type=int, default=1, help="of all ways in turn; their steps count together (1)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before those that count (3)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round; the median counts (10)")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    machine = {"name": "CPU", "bytes": 0}
    if args.device == "cuda":
        code, path = child("device", {}, args.output, args.device)
        if code:
            raise InputError("no CUDA device here; the twin for a CPU is --shape tiny --device cpu")
        machine = read_json(path)
    model, sequence = SHAPES[args.shape]
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    layers = args.layers or model.layers
    if args.device == "cuda" and not args.layers:
        layers = min(layers, layers_that_fit(model, sequence, args.micro_batch, machine["bytes"]))
    given = {
        "shape": args.shape, "layers": layers, "hidden": model.hidden, "ffn": model.ffn, "heads": model.heads,
        "vocab": model.vocab, "sequence": sequence, "document": sequence // 8, "micro_batch": args.micro_batch,
        "dtype": dtype, "warm_up": args.warm_up, "steps": args.steps,
    }  # fmt: skip
    chosen = ways(args.ways, machine, dtype)
    measured: dict[str, list] = {way: [] for way in chosen}
    for _ in range(args.rounds):
        for way in chosen:
            measured[way].append(measure(way, given, args.output, args.device))
    results = {way: figures(way, rounds, given, machine["name"]) for way, rounds in measured.items()}
    shown = table(results)
    about = {
        "command": shlex.join(sys.orig_argv[1:]),
        "date": datetime.date.today().isoformat(),
        "device": machine,
        "cores": os.cpu_count(),
        "versions": versions(),
        "code": git_state(ROOT),
        "formula": FORMULA,
    }
    write_json(args.output / "results.json", about | {"settings": given, "results": results})
    with atomic_output(args.output / "table.md") as file:
        file.write(shown + "\n")
    print(shown)
    print(f"\n{machine['name']}, {args.shape} shape, {dtype}, {args.micro_batch} x {sequence} tokens a step, ", end="")
    print(
        f"median of {args.rounds * args.steps} steps; "
        + ", ".join(f"{name} {found}" for name, found in versions().items())
    )
    print(FORMULA)


if __name__ == "__main__":
    exit_cleanly(main)
