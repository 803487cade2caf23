"""All that one GPU can show in eight minutes: tests/gpu; training of as many 13B-shaped layers as fit at 4,096 tokens
by Megatron's local layers, by ours with each kernel of packed rows, by transformers and by Transformer Engine; short
dialogues packed against padded; generation against transformers. Writes results.json and report.md, anew after each.

It needs no installation: what the machine lacks is left out by name, and so is what the time does not suffice for. With
--device cpu it is its own small twin, which shows that all of it runs; that says nothing about a GPU.
"""

import argparse
import datetime
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]  # the machine may not have this package installed

from children import PATIENCE, Run, run, with_fewer_layers  # noqa: E402
from figures import FORMULA, SCORE_BYTES, SHAPES, layers_that_fit, report, training_figures  # noqa: E402
from measurements import MEASUREMENTS, Budget, absent  # noqa: E402

from megatron_chimed.errors import InputError, exit_cleanly  # noqa: E402
from megatron_chimed.jsonl import atomic_output, write_json  # noqa: E402
from megatron_chimed.training.run_record import git_state  # noqa: E402

VERSIONS = ("torch", "megatron-core", "transformers", "transformer-engine", "flash-attn", "apex")
SMALL = {
    "cuda": {"rows": 4, "passes": 2, "prompt": 128, "new_tokens": 64, "batches": [1, 64]},
    "cpu": {"rows": 2, "passes": 1, "prompt": 16, "new_tokens": 8, "batches": [1, 64]},
}
"""Of dialogues: packed rows and passes that count. Of generation: the longest prompt, new tokens, sizes of batches."""

DOCUMENTS = 8
"""Of a packed row."""

FEW_LAYERS = 4
"""At most so many for dialogues and generation: they compare two ways of one model, and a file of it is written."""


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def settings(args: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    """What every measurement is given: the shape, as many of its layers as fit, and how much is done."""
    shape = args.shape or ("13b" if args.device == "cuda" else "tiny")
    model, sequence = SHAPES[shape]
    sequence = args.sequence or sequence
    layers = dict.fromkeys(("ours", "stock"), args.layers or model.layers)
    if args.device == "cuda" and not args.layers:
        for way, scores in {"ours": 0, "stock": SCORE_BYTES}.items():
            fit = layers_that_fit(model, sequence, args.micro_batch, machine["bytes"], scores)
            layers[way] = min(layers[way], fit)
    return {
        "device": args.device, "shape": shape, "layers": layers["ours"],
        "layers_of_stock": layers["stock"], "hidden": model.hidden, "ffn": model.ffn,
        "heads": model.heads, "vocab": model.vocab, "sequence": sequence, "document": sequence // DOCUMENTS,
        "micro_batch": args.micro_batch, "dtype": "bfloat16" if args.device == "cuda" else "float32",
        "warm_up": args.warm_up, "steps": args.steps, "tests": "tests/gpu", **SMALL[args.device],
    }  # fmt: skip


def measure_one(name: str, given: dict[str, Any], folder: Path, limit: float, start: Run) -> dict[str, Any]:
    """The result of a measurement that can run here."""
    part = MEASUREMENTS[name].part
    if part == "tests":
        return start(name, given, folder, limit)
    if part != "training":
        given = given | {"layers": min(given["layers"], FEW_LAYERS)}
    if name == "stock":
        given = given | {"layers": given["layers_of_stock"]}
    found = with_fewer_layers(name, given, folder, limit, start)
    return found | training_figures(name, found, given) if part == "training" and "left_out" not in found else found


def measure_all(chosen: list[str], given: dict[str, Any], machine: dict[str, Any], folder: Path, budget: Budget,
                start: Run = run):  # fmt: skip
    """Yield (name, result) of all that was chosen, in turn. A result has "left_out", a reason, where there is none."""
    able = [name for name in chosen if not absent(MEASUREMENTS[name], machine)]
    for name in chosen:
        one = MEASUREMENTS[name]
        about = {"part": one.part, "title": one.title.format(dtype=given["dtype"])}
        if name not in able:
            yield name, about | {"left_out": absent(one, machine)}
            continue
        able.remove(name)
        limit = budget.share(one.weight, [MEASUREMENTS[other].weight for other in able])
        if limit < 1:
            yield name, about | {"left_out": f"the {budget.seconds / 60:g} minutes were over"}
            continue
        print(f"{about['title']}, {limit:.0f} s at most ...", file=sys.stderr, flush=True)
        yield name, about | measure_one(name, given | {"peak_of": machine["name"]}, folder, limit, start)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python benchmarks/gpu/check.py --output runs/gpu-check\n"
        "  python benchmarks/gpu/check.py --device cpu --only sdpa transformers --sequence 2048",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs/gpu-check", metavar="FOLDER", help="for results, report and logs"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(cuda)")
    parser.add_argument("--minutes", type=float, default=8, help="for all of it; what does not fit is left out (8)")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--shape", choices=SHAPES, help="of the layers (13b; on a CPU tiny)")
    parser.add_argument("--layers", type=int, help="instead of as many as fit, or all of a shape on a CPU")
    parser.add_argument("--sequence", type=int, help="tokens of a row, eight times a document's (4096; tiny: 512)")
    parser.add_argument("--micro-batch", type=int, default=1, help="rows of a step (1)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before those that count (3)")
    parser.add_argument("--steps", type=int, default=8, help="steps that count, by their median (8)")
    args = parser.parse_args()
    if args.sequence is not None and args.sequence < DOCUMENTS:
        parser.error(f"--sequence {args.sequence}: a row has {DOCUMENTS} documents; give {DOCUMENTS} tokens or more")
    return args


def prepare(device: str) -> None:
    """The environment of all children."""
    paths = (HERE, HERE.parent, ROOT, os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if path)
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    os.environ |= {"PYTHONWARNINGS": "ignore", "CUDA_DEVICE_MAX_CONNECTIONS": "1", "HF_HUB_OFFLINE": "1"}
    if device == "cpu":  # one thread: the ways compare better on a machine with other work
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def require_passed(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """Raise InputError when a test has failed. Those that were left out have not."""
    tests = results.get("tests", {})
    if failed := tests.get("names_of_failed"):
        raise InputError(f"{len(failed)} of tests/gpu failed, {failed[0]} first; see {folder / 'tests.log'}")


def main() -> None:
    """Run all measurements; print the report. Exits with 1 when a test of tests/gpu has failed."""
    args = arguments()
    budget = Budget(args.minutes * 60, reserve=PATIENCE + 1)
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    prepare(args.device)
    machine = run("probe", {"device": args.device}, args.output, 120)
    if "left_out" in machine:
        raise InputError(f"the device cannot be asked: {machine['left_out']}; see {args.output / 'probe.log'}")
    if args.device == "cuda" and machine["name"] == "CPU":
        raise InputError("no CUDA device here, or no torch; the twin for a CPU is --device cpu (make gpu-check CPU=1)")
    given = settings(args, machine)
    about = {
        "command": shlex.join(sys.orig_argv[1:]), "date": datetime.date.today().isoformat(), "device": machine,
        "cores": os.cpu_count(), "versions": versions(), "code": git_state(ROOT), "formula": FORMULA, "settings": given,
    }  # fmt: skip
    chosen, results = [name for name in MEASUREMENTS if not args.only or name in args.only], {}
    for name, found in measure_all(chosen, given, machine, args.output, budget):
        results[name] = found
        write_json(args.output / "results.json", about | {"results": results})
        with atomic_output(args.output / "report.md") as file:
            file.write(report(results, about))
    print((args.output / "report.md").read_text())
    require_passed(results, args.output)


if __name__ == "__main__":
    exit_cleanly(main)
