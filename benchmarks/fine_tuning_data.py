"""Side by side: `chimed pack sft`, and the steps of TRL's SFTTrainer on the same dialogues: datasets.map with the chat
template of the same tokenizer, pack_dataset with "bfd", save_to_disk.

Each time is that of a whole command. Both learn the assistant's turns alone and must have as many tokens, of which as
many learnt; ours also guards its rows against damage, by hashes, and has an index of what came from where. The
dialogues do not repeat themselves: sentences that are drawn from the input at random.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from corpus import DEMO, ROOT, make_byte_level, read_sentences, run

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.packing.packed_rows import PackedRows

LENGTH = 4096
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ \
message.content }}<|im_end|>{% endif %}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PEER = """
import json, os, sys
model, source, folder, workers, length = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
import datasets
from transformers import AutoTokenizer
from trl import pack_dataset
tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)

def tokenize(example):
    made = tokenizer.apply_chat_template(example["messages"], return_dict=True, return_assistant_tokens_mask=True)
    return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

rows = datasets.load_dataset("json", data_files=source, split="train", cache_dir=folder + "/cache")
names = rows.column_names
rows = rows.map(tokenize, num_proc=workers, remove_columns=names)
rows = pack_dataset(rows, length, "bfd", map_kwargs={"num_proc": workers})
rows.save_to_disk(folder + "/packed")
"""
EXAMPLE = """example:
  make peers
  python benchmarks/fine_tuning_data.py --peer peers --input rows.jsonl --json-keys question answer"""


def write_dialogues(sentences: list[str], folder: Path, megabytes: float) -> tuple[Path, Path]:
    """Dialogues of one to four questions as both tools read them: (of ours, of TRL)."""
    draw, size = random.Random(0), 0
    paths = folder / "ours.jsonl", folder / "messages.jsonl"
    with open(paths[0], "w", encoding="utf-8") as ours, open(paths[1], "w", encoding="utf-8") as theirs:
        for number in range(sys.maxsize):
            if size > megabytes * 1e6:
                return paths
            turns = []
            for _ in range(draw.randint(1, 4)):
                for role, most in (("user", 3), ("assistant", 10)):
                    text = "".join(draw.choices(sentences, k=draw.randint(1, most)))
                    turns.append((role, f"{draw.randrange(10**6)} {text}".strip()))
            row = {"id": f"b:{number}", "source": "b", "turns": [{"role": role, "text": text} for role, text in turns]}
            line = json.dumps(row, ensure_ascii=False) + "\n"
            size += len(line.encode())
            ours.write(line)
            messages = [{"role": role, "content": text} for role, text in turns]
            theirs.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    raise AssertionError


def make_tokenizer(texts: Path, ids: int, folder: Path) -> Path:
    """A byte-level tokenizer with ChatML's marks and a chat template that says what is the assistant's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_byte_level(texts, ids, folder), local_files_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def counts_of_ours(folder: Path) -> tuple[int, int, int]:
    """(tokens, learnt tokens, rows) of a packed folder."""
    packed = PackedRows(folder)
    mask = packed.arrays["loss_mask"]
    return len(packed.arrays["tokens"]), int(np.count_nonzero(mask)), len(packed)


def counts_of_peer(folder: Path) -> tuple[int, int, int]:
    """The same of TRL's dataset."""
    import datasets

    rows = datasets.load_from_disk(str(folder / "packed")).data
    tokens = sum(len(chunk.flatten()) for chunk in rows["input_ids"].chunks)
    learnt = sum(
        int(np.sum(chunk.flatten().to_numpy(zero_copy_only=False))) for chunk in rows["assistant_masks"].chunks
    )
    return tokens, learnt, len(rows)


def measure(found: dict[str, list], args: argparse.Namespace) -> tuple[dict, dict]:
    """({name: seconds of each run}, {name: counts}), in turn."""
    times: dict[str, list[float]] = {name: [] for name in found}
    counts = {}
    for _ in range(args.runs):
        for name, command in found.items():
            folder = args.work / name.split()[0]
            shutil.rmtree(folder, ignore_errors=True)
            times[name].append(run(command, args.work / "log"))
            counts[name] = (counts_of_ours if name == "ours" else counts_of_peer)(folder)
    return times, counts


def report(args: argparse.Namespace) -> list[str]:
    """Measure, and a Markdown table of it. Raises InputError if the counts of tokens differ."""
    args.work.mkdir(parents=True, exist_ok=True)
    ours, theirs = write_dialogues(read_sentences(args.input, args.json_keys), args.work, args.megabytes)
    model = make_tokenizer(ours, args.ids, args.work / "tokenizer")
    found: dict[str, list] = {
        "ours": ["-m", "megatron_chimed", "pack", "sft", "--input", ours, "--tokenizer", model]
        + ["--template", "tokenizer", "--sequence-length", LENGTH, "--output", args.work / "ours"]
        + ["--workers", args.workers]
    }
    if args.peer:
        os.environ |= {"PYTHONPATH": str(args.peer.resolve()), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        found["TRL's steps"] = ["-c", PEER, model, theirs, args.work / "TRL's", args.workers, LENGTH]
    times, counts = measure(found, args)
    if len({one[:2] for one in counts.values()}) > 1:
        raise InputError(f"{args.work}: not the same tokens and learnt tokens: {counts}")
    megabytes, usual = ours.stat().st_size / 1e6, statistics.median(times["ours"])
    lines = ["| | seconds (median) | all runs | MB/s | rows | fill | ours is |", "|" + "---|" * 7]
    for name, values in times.items():
        median, (tokens, _, rows) = statistics.median(values), counts[name]
        runs = " ".join(f"{value:.1f}" for value in values)
        lines.append(
            f"| {name} | {median:.1f} | {runs} | {megabytes / median:.1f} | {rows:,} | {tokens / rows / LENGTH:.2%} "
            f"| {median / usual:.2f}x |"
        )
    tokens, learnt, _ = counts["ours"]
    names = ("transformers", "tokenizers", "splintr-rs", "tokie", "datasets", "pyarrow")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return [
        *lines, "",
        f"{megabytes:.0f} MB of dialogues, {tokens:,} tokens, {learnt:,} learnt, the same of both; rows of {LENGTH}; "
        f"{args.ids:,} ids; {args.workers} workers, {args.runs} runs in turn; Python {platform.python_version()}, "
        f"{packages}; {os.cpu_count()} cores.",
    ]  # fmt: skip


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="folder with TRL; left out: ours alone")
    parser.add_argument(
        "--input", type=Path, nargs="+", default=[DEMO / "world/pretrain_train.jsonl"], help="JSON lines with sentences"
    )
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="fields that hold text (text)")
    parser.add_argument("--ids", type=int, default=50_000, help="ids of the byte-level tokenizer (50000)")
    parser.add_argument("--megabytes", type=float, default=100, help="size of the dialogues (100)")
    parser.add_argument("--workers", type=int, default=2, help="processes of each (2)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/benchmark", help="folder for some GB of files")
    args = parser.parse_args()
    for path in filter(None, (args.peer, *args.input)):
        if not path.exists():
            raise InputError(f"{path}: no such file; give one, or run make demo, which makes the default")
    print("\n".join(report(args)))


if __name__ == "__main__":
    exit_cleanly(main)
