"""Side by side: Megatron's tools/preprocess_data.py, ours, and bare batched SentencePiece in two processes.

Ours must be byte-identical to Megatron's. The three run in turn, several times; each time is that of a whole command,
from its start to its end. "Bare" is the least that any tool on SentencePiece must do: its processes read texts that
lie ready, one to a line, encode them in batches of 1,000 to lists of ids, and throw these away.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.jsonl import read_json_lines, sha256_file

ROOT = Path(__file__).resolve().parents[1]
OURS, DEMO = ROOT / "tools/preprocess_data.py", ROOT / "runs/demo"
EXAMPLE = """example:
  python benchmarks/corpus.py --peer ../Megatron-LM/tools/preprocess_data.py --input medical.jsonl \\
      --tokenizer-model tokenizer.model --workers 2 --repeat-to 300 --work /tmp/benchmark"""
BARE = """
import os, sys
import sentencepiece
model, path, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
processor = sentencepiece.SentencePieceProcessor(model_file=model)
size = os.path.getsize(path)
children = []
for worker in range(workers):
    if (child := os.fork()) == 0:
        with open(path, "rb") as file:
            end = size * (worker + 1) // workers
            if worker:
                file.seek(size * worker // workers)
                file.readline()
            while file.tell() < end:
                lines = [line for _ in range(1000) if (line := file.readline())]
                processor.encode([line.decode() for line in lines])
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def enlarge(source: Path, keys: list[str], target: Path, megabytes: float) -> Path:
    """Write {"text"} rows made of two random documents each until `megabytes` are reached, and the texts alone.

    Cut at random places and numbered, they do not repeat, so no cache of words sees the same text again. Returns the
    file of texts: the same, a line each.
    """
    texts = ["\n".join(str(row[key]) for key in keys if row.get(key)) for _, row in read_json_lines(source)]
    if not texts:
        raise InputError(f"{source}: no rows; give JSON lines")
    draw, size, bare = random.Random(0), 0, target.with_suffix(".txt")
    with open(target, "w", encoding="utf-8") as rows, open(bare, "w", encoding="utf-8") as plain:
        while size < megabytes * 1e6:
            one, other = draw.choice(texts), draw.choice(texts)
            text = f"{draw.randrange(10**6)} {one[draw.randrange(20) :]}\n{other}"
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            size += len(line.encode())
            rows.write(line)
            plain.write(" ".join(text.splitlines()) + "\n")
    return bare


def run(command: list, log: Path) -> float:
    """Seconds that a command takes. Raises InputError if it fails."""
    with open(log, "w") as output:
        start = time.perf_counter()
        code = subprocess.run([sys.executable, *map(str, command)], stdout=output, stderr=output).returncode
        seconds = time.perf_counter() - start
    if code:
        raise InputError(f"{' '.join(map(str, command))[:200]}: failed with code {code}; see {log}")
    return seconds


def measure(args: argparse.Namespace, rows: Path, texts: Path) -> dict[str, list[float]]:
    """Seconds of each run of each of the three, taken in turn. Raises InputError if the outputs differ."""
    tool = [
        "--input", rows, "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", args.tokenizer_model,
        "--append-eod", "--workers", args.workers,
    ]  # fmt: skip
    times: dict[str, list[float]] = {"Megatron-LM": []} if args.peer else {}
    times |= {"ours": [], "bare SentencePiece": []}
    for _ in range(args.runs):
        for old in args.work.glob("out_*"):
            old.unlink()
        log = args.work / "log"
        if args.peer:
            times["Megatron-LM"].append(run([args.peer, *tool, "--output-prefix", args.work / "out_peer"], log))
        times["ours"].append(run([OURS, *tool, "--output-prefix", args.work / "out_ours"], log))
        times["bare SentencePiece"].append(run(["-c", BARE, args.tokenizer_model, texts, args.workers], log))
        for suffix in ("bin", "idx") if args.peer else ():
            theirs, ours = (args.work / f"out_{name}_text_document.{suffix}" for name in ("peer", "ours"))
            if sha256_file(theirs) != sha256_file(ours):
                raise InputError(f"{ours}: differs from {theirs}")
    return times


def report(times: dict[str, list[float]], megabytes: float, args: argparse.Namespace) -> str:
    """A Markdown table of medians and ratios."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = medians["ours"]
    lines = ["| | seconds (median) | all runs | MB/s | ours is |", "|---|---|---|---|---|"]
    for name, median in medians.items():
        runs = " ".join(f"{value:.1f}" for value in times[name])
        lines.append(f"| {name} | {median:.2f} | {runs} | {megabytes / median:.1f} | {median / ours:.2f}x |")
    packages = ", ".join(f"{name} {version(name)}" for name in ("megatron-core", "sentencepiece", "numpy"))
    lines += [
        "",
        f"{megabytes:.0f} MB of JSON lines, {args.workers} workers, {args.runs} runs in turn"
        + ("; the .bin and .idx files are byte-identical." if args.peer else "; Megatron-LM was not given (--peer)."),
        f"Python {platform.python_version()}, {packages}; {os.cpu_count()} cores, {platform.machine()}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="Megatron-LM's tools/preprocess_data.py; left out: not measured")
    parser.add_argument("--input", type=Path, default=DEMO / "world/pretrain_train.jsonl", help="JSON lines to repeat")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="fields that make a document (text)")
    parser.add_argument("--tokenizer-model", type=Path, default=DEMO / "tokenizer/tokenizer.model")
    parser.add_argument("--workers", type=int, default=2, help="processes of each of the three (2)")
    parser.add_argument("--repeat-to", type=float, default=300, help="megabytes of JSON lines to measure on (300)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/benchmark", help="folder for some GB of files")
    args = parser.parse_args()
    for path in filter(None, (args.peer, args.input, args.tokenizer_model)):
        if not path.is_file():
            raise InputError(f"{path}: no such file; give one, or run make demo, which makes the defaults")
    args.work.mkdir(parents=True, exist_ok=True)
    rows = args.work / "rows.jsonl"
    texts = enlarge(args.input, args.json_keys, rows, args.repeat_to)
    print(report(measure(args, rows, texts), rows.stat().st_size / 1e6, args))


if __name__ == "__main__":
    exit_cleanly(main)
