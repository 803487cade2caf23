"""The converter against `cp` of the same bytes, and against transformers' load and save: seconds, GB/s, memory.

Makes a LLaMA-2-shaped checkpoint of random bf16 weights, and then, each as a process of its own, with the files
written out and dropped from the page cache before: cp, hf-to-megatron, megatron-to-hf. The shards that come back must
have the hashes of those that went in. Memory is the largest anonymous memory of the process (RssAnon), asked for every
20 ms: what the process itself holds, without the files that it maps.
"""

import argparse
import functools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from megatron_chimed.convert import architecture as arch
from megatron_chimed.convert.hf_folder import write_weights
from megatron_chimed.convert.plan import Planned
from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.jsonl import sha256_file, write_json

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools/convert_checkpoint.py"
SHAPES = {  # layers, hidden, ffn, heads, vocabulary: of LLaMA-2, with Ziya2's vocabulary for 13B
    "13b": (40, 5120, 13824, 40, 39424),
    "7b": (32, 4096, 11008, 32, 32000),
    "tiny": (4, 512, 1024, 8, 4000),
}
LOAD_AND_SAVE = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])
"""


def make_checkpoint(folder: Path, shape: str) -> None:
    """Write a Hugging Face folder of random weights: slices of one block of random numbers."""
    layers, hidden, ffn, heads, vocab = SHAPES[shape]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads,
        "num_key_value_heads": heads, "vocab_size": vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    model = arch.from_hf(config, "config.json")
    block = torch.randn(1 << 26, generator=torch.Generator().manual_seed(0)).bfloat16()
    draw = random.Random(0)

    def make(size):
        start = draw.randrange(len(block))
        repeats = -(-(start + size.numel()) // len(block))
        return block.repeat(repeats)[start : start + size.numel()].view(size)

    shapes = model.family.hf_tensors(model.head, model.tied, model.sizes)
    planned = [Planned(name, size, torch.bfloat16, functools.partial(make, torch.Size(size))) for name, size in shapes]
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_weights(folder, in_order(planned), 5 * 10**9, lambda count: None)


def in_order(planned: list[Planned]) -> list[Planned]:
    """The order in which the converter writes: embedding, layer by layer, the rest."""
    layered = [tensor for tensor in planned if ".layers." in tensor.name]
    layered.sort(key=lambda tensor: int(tensor.name.split(".")[2]))
    others = [tensor for tensor in planned if tensor not in layered]
    return [others[0], *layered, *others[1:]]


def forget(folder: Path) -> None:
    """Write files out and drop them from the page cache."""
    os.sync()
    for file in (path for path in folder.rglob("*") if path.is_file()):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list, source: Path, log: Path) -> tuple[float, float, float]:
    """(seconds, seconds with the files on the disk, peak of anonymous memory in GiB). Raises InputError on failure."""
    forget(source)
    peak = 0
    with open(log, "w") as output:
        start = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line)])
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.02)
        code = process.wait()
        seconds = time.perf_counter() - start
        os.sync()
        synced = time.perf_counter() - start
    if code:
        raise InputError(f"{' '.join(map(str, command))[:200]}: failed with code {code}; see {log}")
    return seconds, synced, peak / 2**20


def hashes(folder: Path) -> dict[str, str]:
    """Hashes of the shards."""
    return {file.name: sha256_file(file) for file in sorted(folder.glob("*.safetensors"))}


def measure(args: argparse.Namespace) -> tuple[dict[str, tuple[float, float, float]], int]:
    """Figures of each command, and the bytes that it reads and writes. At most two copies are on the disk at a time."""
    work, log = args.work, args.work / "log"
    shutil.rmtree(work, ignore_errors=True)
    hf, copy, megatron, again = work / "hf", work / "copy", work / "megatron", work / "again"
    make_checkpoint(hf, args.shape)
    size = sum(file.stat().st_size for file in hf.iterdir())
    figures = {"cp -r": run(["cp", "-r", hf, copy], hf, log)}
    shutil.rmtree(copy)
    if args.transformers:
        name = f"transformers {version('transformers')}: load and save"
        figures[name] = run([sys.executable, "-c", LOAD_AND_SAVE, hf, copy], hf, log)
        shutil.rmtree(copy)
    words = [sys.executable, TOOL, "hf-to-megatron", "--hf", hf, "--megatron", megatron]
    figures["hf-to-megatron"] = run(words, hf, log)
    before = hashes(hf)
    shutil.rmtree(hf)
    words = [sys.executable, TOOL, "megatron-to-hf", "--megatron", megatron, "--hf", again]
    figures["megatron-to-hf"] = run(words, megatron, log)
    if hashes(again) != before:
        raise InputError(f"{again}: not the weights that went in")
    shutil.rmtree(work)
    return figures, size


def report(figures: dict[str, tuple[float, float, float]], size: int, shape: str) -> str:
    """A Markdown table."""
    copied, copied_synced, _ = figures["cp -r"]
    lines = ["| | seconds | x cp | with sync | x cp | GB/s | anonymous memory, GiB |", "|---|---|---|---|---|---|---|"]
    for name, (seconds, synced, memory) in figures.items():
        lines.append(
            f"| {name} | {seconds:.1f} | {seconds / copied:.2f} | {synced:.1f} | {synced / copied_synced:.2f} | "
            f"{size / seconds / 1e9:.2f} | {memory:.2f} |"
        )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core", "safetensors"))
    lines += [
        "",
        f"{shape}: {size / 1e9:.1f} GB of random bf16 weights; what comes back has the hashes of what went in.",
    ]
    lines += [f"Python {platform.python_version()}, {packages}; {os.cpu_count()} cores, {platform.machine()}."]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/convert.py --shape 13b --work runs/benchmark-convert",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="size of the model (tiny; 13b needs 54 GB)")
    parser.add_argument("--transformers", action="store_true", help="also load and save it with transformers")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/benchmark-convert", help="folder to make and remove")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    if args.work.exists() and not (args.work / "log").exists() and any(args.work.iterdir()):
        raise InputError(f"{args.work}: is not empty and not of this benchmark; name another folder")
    figures, size = measure(args)
    if args.json:
        args.json.write_text(json.dumps({"bytes": size, "figures": figures}))
    print(report(figures, size, args.shape))


if __name__ == "__main__":
    exit_cleanly(main)
