"""Side by side: many texts to ids by the library of a tokenizer, and through `Tokenizer.encode_flat`.

One process and one thread each, as a worker process has. The first pass of `encode_flat` opens the faster library and
has it agree on hostile texts; the others are what each further batch costs, one text in a hundred by both. The ids of
all passes must be equal.
"""

import argparse
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from corpus import DEMO, ROOT, make_byte_level, recombine

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.text.tokenizer import Tokenizer, load_tokenizer

EXAMPLE = """example:
  python benchmarks/tokenization.py --byte-level 50000 --megabytes 10"""


def measure(tokenizer: Tokenizer, texts: list[str], runs: int) -> dict[str, list[float]]:
    """Seconds of each run of each way, taken in turn. Raises InputError if the ids differ."""
    times: dict[str, list[float]] = {"the tokenizer's own library": [], "encode_flat": []}
    for _ in range(runs):
        start = time.perf_counter()
        rows = tokenizer.encode_batch(texts)
        times["the tokenizer's own library"].append(time.perf_counter() - start)
        start = time.perf_counter()
        ids, lengths = tokenizer.encode_flat(texts)
        times["encode_flat"].append(time.perf_counter() - start)
        same = lengths.tolist() == list(map(len, rows)) and np.array_equal(ids, np.concatenate(rows))
        if not same:
            raise InputError("the ids differ")
    return times


def report(times: dict[str, list[float]], megabytes: float, what: str) -> str:
    """A Markdown table."""
    own = statistics.median(times["the tokenizer's own library"])
    lines = [f"| {what} | seconds: first, others | MB/s | times its own library |", "|---|---|---|---|"]
    for name, values in times.items():
        median = statistics.median(values[1:] or values)
        runs = " ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {name} | {runs} | {megabytes / median:.1f} | {own / median:.2f}x |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = DEMO / "world/pretrain_train.jsonl"
    parser.add_argument("--input", type=Path, nargs="+", default=[source], help="JSON lines with sentences")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="fields that hold text (text)")
    parser.add_argument("--tokenizer", nargs="*", default=[], help="tokenizers to measure, .model files or folders")
    parser.add_argument("--byte-level", type=int, metavar="IDS", default=50_000, help="of the one made here (50000)")
    parser.add_argument("--megabytes", type=float, default=10, help="text to measure on (10)")
    parser.add_argument("--runs", type=int, default=5, help="passes of each (5)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/benchmark", help="folder for the text")
    args = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    args.work.mkdir(parents=True, exist_ok=True)
    path = recombine(args.input, args.json_keys, args.work / "rows.jsonl", args.megabytes)
    texts = path.read_text(encoding="utf-8").splitlines()
    made = make_byte_level(path, args.byte_level, args.work / f"byte-level-{args.byte_level}")
    for place in (made, *map(Path, args.tokenizer)):
        tokenizer = load_tokenizer(place)
        times = measure(tokenizer, texts, args.runs)
        print(report(times, path.stat().st_size / 1e6, f"{place.name}, {tokenizer.vocab_size} ids"), end="\n\n")
    packages = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "splintr-rs", "sentencepiece"))
    print(f"Python {platform.python_version()}, {packages}; one thread, {platform.machine()}.")


if __name__ == "__main__":
    exit_cleanly(main)
