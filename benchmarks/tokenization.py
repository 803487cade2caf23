"""Side by side: many texts to ids by the library of a tokenizer, and through `Tokenizer.encode_flat`.

One process and one thread each, as a worker process has. Each pass has texts of its own, and no sentence stands in two
of them: what has been seen is remembered, and a text that repeats itself would show that. The first pass of
`encode_flat` opens the faster library and has it agree on hostile texts; the others are what each further batch costs,
one text in a hundred by both. The ids of all passes must be equal.
"""

import argparse
import itertools
import os
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from corpus import DEMO, ROOT, make_byte_level, read_sentences

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.text.tokenizer import Tokenizer, load_tokenizer

EXAMPLE = """example:
  python benchmarks/tokenization.py --byte-level 50000 --input rows.jsonl --json-keys question answer"""


def measure(tokenizer: Tokenizer, passes: list[list[str]]) -> dict[str, list[float]]:
    """MB/s of each pass of each way, taken in turn. Raises InputError if the ids differ."""
    speeds: dict[str, list[float]] = {"the tokenizer's own library": [], "encode_flat": []}
    for texts in passes:
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        start = time.perf_counter()
        rows = tokenizer.encode_batch(texts)
        speeds["the tokenizer's own library"].append(megabytes / (time.perf_counter() - start))
        start = time.perf_counter()
        ids, lengths = tokenizer.encode_flat(texts)
        speeds["encode_flat"].append(megabytes / (time.perf_counter() - start))
        same = lengths.tolist() == list(map(len, rows)) and np.array_equal(ids, np.concatenate(rows))
        if not same:
            raise InputError("the ids differ")
    return speeds


def report(speeds: dict[str, list[float]], what: str) -> str:
    """A Markdown table."""
    own = statistics.median(speeds["the tokenizer's own library"][1:])
    lines = [
        f"| {what} | MB/s: first pass, others | median of the others | times its own library |",
        "|---|---|---|---|",
    ]
    for name, values in speeds.items():
        median = statistics.median(values[1:])
        lines.append(f"| {name} | {' '.join(f'{one:.1f}' for one in values)} | {median:.1f} | {median / own:.2f}x |")
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
    parser.add_argument("--runs", type=int, default=6, help="passes of each (6)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/benchmark", help="folder for the text")
    args = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    args.work.mkdir(parents=True, exist_ok=True)
    sentences = read_sentences(args.input, args.json_keys)
    random.Random(0).shuffle(sentences)
    texts = ["".join(some) for some in itertools.batched(sentences, 10)]
    passes = [texts[number :: args.runs] for number in range(args.runs)]
    path = args.work / "texts.txt"
    path.write_text("\n".join(" ".join(text.split("\n")) for text in texts), encoding="utf-8")
    made = make_byte_level(path, args.byte_level, args.work / f"byte-level-{args.byte_level}")
    for place in (made, *map(Path, args.tokenizer)):
        tokenizer = load_tokenizer(place)
        print(report(measure(tokenizer, passes), f"{place.name}, {tokenizer.vocab_size} ids"), end="\n\n")
    packages = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "splintr-rs", "tokie", "sentencepiece"))
    print(f"Python {platform.python_version()}, {packages}; one thread, {platform.machine()}.")


if __name__ == "__main__":
    exit_cleanly(main)
