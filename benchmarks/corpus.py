"""Side by side: Megatron's preprocess_data.py and preprocess_data_fast.py, ours, and the bare tokenizer in processes.

Ours must be byte-identical to Megatron's. All run in turn, several times; each time is that of a whole command, from
its start to its end. "Bare" is the least that a tool on the usual library must do: its processes read texts that lie
ready, one to a line, encode them in batches of 1,000 (SentencePiece to lists, tokenizers by encode_batch_fast), and
throw the ids away. The text does not repeat itself: documents of sentences that are drawn from the input at random.
"""

import argparse
import itertools
import json
import os
import platform
import random
import re
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
  python benchmarks/corpus.py --peer ../Megatron-LM/tools/preprocess_data.py --fast-peer \\
      ../Megatron-LM/tools/preprocess_data_fast.py --byte-level 50000 --clean --repeat-to 300 --work /tmp/benchmark"""
BARE = """
import os, sys
model, path, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
if os.path.isdir(model):
    from transformers import AutoTokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encode = AutoTokenizer.from_pretrained(model, local_files_only=True).backend_tokenizer.encode_batch_fast
else:
    import sentencepiece
    encode = sentencepiece.SentencePieceProcessor(model_file=model).encode
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
                encode([line.decode() for line in lines])
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def read_sentences(sources: list[Path], keys: list[str]) -> list[str]:
    """The different sentences of texts. Raises InputError."""
    texts = [str(row[key]) for source in sources for _, row in read_json_lines(source) for key in keys if row.get(key)]
    sentences = sorted({part for text in texts for part in re.split(r"(?<=[。！？.!?\n])", text) if part.strip()})
    if not sentences:
        raise InputError(f"{sources[0]}: no sentences in {', '.join(keys)}; give JSON lines and --json-keys")
    return sentences


def recombine(sources: list[Path], keys: list[str], target: Path, megabytes: float) -> Path:
    """Write {"text"} rows of 4 to 16 random sentences each until `megabytes` are reached, and the texts alone.

    Returns the file of texts: the same, a line each.
    """
    sentences = read_sentences(sources, keys)
    draw, size, bare = random.Random(0), 0, target.with_suffix(".txt")
    with open(target, "w", encoding="utf-8") as rows, open(bare, "w", encoding="utf-8") as plain:
        while size < megabytes * 1e6:
            text = f"{draw.randrange(10**6)} " + "".join(draw.choices(sentences, k=draw.randint(4, 16)))
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            size += len(line.encode())
            rows.write(line)
            plain.write(" ".join(text.splitlines()) + "\n")
    return bare


def make_byte_level(texts: Path, ids: int, folder: Path) -> Path:
    """Train a byte-level byte-pair tokenizer, as of GPT-2, LLaMA 3 and Qwen, on the first texts. Returns its folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Chinese has no spaces, and the longest merges would be whole sentences: the pattern of Qwen cuts at punctuation.
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    pattern += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=ids, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    with open(texts, encoding="utf-8") as file:
        tokenizer.train_from_iterator(itertools.islice(file, 30_000), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def run(command: list, log: Path) -> float:
    """Seconds that a command takes. A peer finds the Megatron of its own repository. Raises InputError."""
    own = {} if command[0] in (OURS, "-c", "-m") else {"PYTHONPATH": f"{command[0].resolve().parents[1]}"}
    path = os.pathsep.join(filter(None, [own.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]))
    with open(log, "w") as output:
        start = time.perf_counter()
        words = [sys.executable, *map(str, command)]
        code = subprocess.run(words, stdout=output, stderr=output, env=os.environ | {"PYTHONPATH": path}).returncode
        seconds = time.perf_counter() - start
    if code:
        raise InputError(f"{' '.join(map(str, command))[:200]}: failed with code {code}; see {log}")
    return seconds


def commands(args: argparse.Namespace, rows: Path, texts: Path) -> dict[str, list]:
    """The commands that are measured, by name; what writes a corpus ends in its prefix."""
    kind = "HuggingFaceTokenizer" if args.tokenizer_model.is_dir() else "SentencePieceTokenizer"
    tool = ["--input", rows, "--tokenizer-type", kind, "--tokenizer-model", args.tokenizer_model, "--append-eod"]
    many = [*tool, "--workers", args.workers]
    found: dict[str, list] = {}
    if args.peer:
        found["preprocess_data.py"] = [args.peer, *many]
    if args.fast_peer:
        found["preprocess_data_fast.py"] = [args.fast_peer, *tool, "--use-gigatoken"]
    found["ours"] = [OURS, *many]
    if args.clean:
        found["ours, --clean --dedup near"] = [OURS, *many, "--clean", "--dedup", "near"]
    found = {
        name: [*command, "--output-prefix", args.work / f"out_{number}"]
        for number, (name, command) in enumerate(found.items())
    }
    return found | {"bare tokenizer": ["-c", BARE, args.tokenizer_model, texts, args.workers]}


def measure(found: dict[str, list], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each run of each command, taken in turn. Raises InputError if the outputs differ."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(args.runs):
        for old in args.work.glob("out_*"):
            old.unlink()
        for name, command in found.items():
            times[name].append(run(command, args.work / "log"))
        for suffix in ("bin", "idx"):
            same = [command[-1] for name, command in found.items() if "clean" not in name and "bare" not in name]
            hashes = {path: sha256_file(f"{path}_text_document.{suffix}") for path in same}
            if len(set(hashes.values())) > 1:
                raise InputError(f"{args.work}: the outputs differ in .{suffix}: {hashes}")
    return times


def report(times: dict[str, list[float]], megabytes: float, args: argparse.Namespace) -> str:
    """A Markdown table of medians and ratios."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = medians["ours"]
    lines = ["| | seconds (median) | all runs | MB/s | ours is |", "|---|---|---|---|---|"]
    for name, median in medians.items():
        runs = " ".join(f"{value:.1f}" for value in times[name])
        lines.append(f"| {name} | {median:.2f} | {runs} | {megabytes / median:.1f} | {median / ours:.2f}x |")
    names = (
        "megatron-core",
        "sentencepiece",
        "tokenizers",
        "splintr-rs",
        "tokie",
        *(["gigatoken"] if args.fast_peer else []),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    peers = "corpora byte-identical." if args.peer or args.fast_peer else "no tool of Megatron-LM was given (--peer)."
    lines += [
        "",
        f"{megabytes:.0f} MB of JSON lines, tokenizer {args.tokenizer_model.name}, {args.workers} workers, {args.runs} "
        f"runs in turn; {peers} Python {platform.python_version()}, {packages}; {os.cpu_count()} cores, "
        f"{platform.machine()}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="Megatron-LM's tools/preprocess_data.py; left out: not measured")
    parser.add_argument("--fast-peer", type=Path, help="its tools/preprocess_data_fast.py, which needs gigatoken")
    parser.add_argument(
        "--input", type=Path, nargs="+", default=[DEMO / "world/pretrain_train.jsonl"], help="JSON lines with sentences"
    )
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="fields that hold text (text)")
    parser.add_argument(
        "--tokenizer-model", type=Path, default=DEMO / "tokenizer/tokenizer.model", help="a .model file or a folder"
    )
    parser.add_argument(
        "--byte-level", type=int, metavar="IDS", help="instead: a byte-level one of so many ids, made here"
    )
    parser.add_argument("--clean", action="store_true", help="measure ours with --clean --dedup near too")
    parser.add_argument("--workers", type=int, default=2, help="processes of each (2)")
    parser.add_argument("--repeat-to", type=float, default=300, help="megabytes of JSON lines to measure on (300)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/benchmark", help="folder for some GB of files")
    args = parser.parse_args()
    for path in filter(
        None, (args.peer, args.fast_peer, *args.input, *([] if args.byte_level else [args.tokenizer_model]))
    ):
        if not path.exists():
            raise InputError(f"{path}: no such file; give one, or run make demo, which makes the defaults")
    args.work.mkdir(parents=True, exist_ok=True)
    rows = args.work / "rows.jsonl"
    texts = recombine(args.input, args.json_keys, rows, args.repeat_to)
    if args.byte_level:
        args.tokenizer_model = make_byte_level(texts, args.byte_level, args.work / f"byte-level-{args.byte_level}")
    print(report(measure(commands(args, rows, texts), args), rows.stat().st_size / 1e6, args))


if __name__ == "__main__":
    exit_cleanly(main)
