"""Memory and time of a training: all weights and whole logits, the loss in chunks of tokens, and LoRA. The real
trainer, one rank.

Each way is a process of its own, in turn: pre-training in float32 on made-up ids, some steps of one row each, from one
base. Memory is the largest resident memory of the process (ru_maxrss), Python, libraries, weights, gradients and Adam's
moments included. Time is that of the fastest step, beside the processor's seconds of the whole training, which other
work on the machine does not change much. The losses must agree, those of LoRA in the first step, when it is its base.
What is freed is given back at once (MALLOC_MMAP_THRESHOLD_ of glibc): else its heap keeps gigabytes that nobody holds.
"""

import argparse
import math
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.plan.stand_in import write_corpus

SHAPES = {  # layers, hidden, ffn, heads, groups, vocabulary
    "smollm2": (30, 576, 1536, 9, 3, 49152),  # SmolLM2-135M
    "qwen3": (4, 1024, 3072, 16, 8, 151936),  # four layers as wide as those of Qwen3-0.6B, with its vocabulary
}
STEP = re.compile(r"elapsed time per iteration \(ms\): ([\d.]+) .* (?:lm|preference) loss: ([\d.E+-]+)")


TIMES = ("seconds", "processor")


@dataclass(frozen=True)
class Figures:
    """What was measured of one training."""

    memory: float
    """GiB."""

    seconds: float
    """Of the fastest step."""

    processor: float
    """Seconds of all steps and of the start."""

    losses: tuple[float, ...]


@dataclass(frozen=True)
class Way:
    """How a training goes: tokens of a chunk, 0 for all; rank of adapters, 0 for all weights."""

    chunk: int = 0
    rank: int = 0

    @property
    def name(self) -> str:
        """For the table."""
        trained = f"LoRA of rank {self.rank}" if self.rank else "all weights"
        return f"{trained}, chunks of {self.chunk:,}" if self.chunk else f"{trained}, whole logits"

    @property
    def settings(self) -> str:
        """The block chimed: of the stage."""
        lines = [f"  cross_entropy_chunk_tokens: {self.chunk}"]
        lines += [f"  lora: {{rank: {self.rank}, alpha: {2 * self.rank}}}"] if self.rank else []
        return "\n".join(["chimed:", *lines, ""])


def write_settings(folder: Path, shape: str, data: str | None, args: argparse.Namespace) -> list[Path]:
    """Model and stage as YAML files. data: what is trained on; None for made-up ids, which are written beside them."""
    layers, hidden, ffn, heads, groups, vocab = SHAPES[shape]
    model = {
        "num-layers": layers, "hidden-size": hidden, "ffn-hidden-size": ffn, "num-attention-heads": heads,
        "group-query-attention": True, "num-query-groups": groups, "max-position-embeddings": args.sequence_length,
        "position-embedding-type": "rope", "normalization": "RMSNorm", "swiglu": True, "disable-bias-linear": True,
        "attention-dropout": 0.0, "hidden-dropout": 0.0, "tokenizer-type": "NullTokenizer", "vocab-size": vocab,
    }  # fmt: skip
    stage = {
        "data-path": data or write_corpus(folder, "pretrain", vocab), "split": "100,0,0", "eval-iters": 0,
        "eval-interval": 1000,
        "seq-length": args.sequence_length, "micro-batch-size": 1, "global-batch-size": 1, "train-iters": args.steps,
        "lr": 1e-4, "lr-decay-style": "constant", "log-interval": 1, "seed": 1,
    }  # fmt: skip
    for name, settings in (("model", model), ("stage", stage)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"megatron": settings}))
    return [folder / "model.yaml", folder / "stage.yaml"]


def train(
    shape: str, way: Way, args: argparse.Namespace, *more: str, stage: str = "pretrain", data: str | None = None
) -> Figures:
    """Train in a process of its own; more: arguments of Megatron. Raises InputError when it fails."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(port)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(args.threads)}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(128 << 10)
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log.txt", "w+") as log:
        files = write_settings(Path(folder), shape, data, args)
        files[1].write_text(files[1].read_text() + way.settings)
        command = [sys.executable, "-m", "megatron_chimed.training.rank", stage, *files, *more]
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        said = log.read()
    if status:
        raise InputError(f"the training of {shape} failed: {said[-2000:]}")
    steps = [(float(ms) / 1000, float(loss)) for ms, loss in STEP.findall(said)]
    fastest, processor = min(seconds for seconds, _ in steps), usage.ru_utime + usage.ru_stime
    return Figures(usage.ru_maxrss / 2**20, fastest, processor, tuple(loss for _, loss in steps))


def compare(shape: str, ways: list[Way], args: argparse.Namespace) -> None:
    """Measure the ways in turn and print a table."""
    vocab = SHAPES[shape][-1]
    found: dict[Way, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as base:
        start = ["--save", base, "--save-interval", "1", "--no-save-optim"]
        start += ["--train-iters", "1", "--lr", "0", "--min-lr", "0"]
        train(shape, ways[0], args, *start)
        for _ in range(args.rounds):
            for way in ways:
                found.setdefault(way, []).append(train(shape, way, args, "--load", base, "--finetune"))
    whole = found[ways[0]][0]
    for way, one in ((way, one) for way, each in found.items() for one in each):
        same = list(zip(one.losses, whole.losses, strict=True))[: 1 if way.rank else None]
        if not all(math.isclose(a, b, rel_tol=1e-5) for a, b in same):
            raise InputError(f"{shape}, {way.name}: other losses; this is no comparison")
    size = 4 * args.sequence_length * vocab / 2**30
    print(f"\n{shape}: {vocab:,} ids, rows of {args.sequence_length:,}, whose logits take {size:.2f} GiB in float32\n")
    print("| way | peak, GiB | against the first | seconds a step | against | processor seconds | against |")
    print("|---|---|---|---|---|---|---|")
    first = best_of(found[ways[0]])
    for way, each in found.items():
        memory, seconds, processor = best_of(each)
        cells = [f"{memory:.2f}", f"{memory - first[0]:+.2f}", f"{seconds:.2f}", f"{seconds / first[1]:.2f}x"]
        print(f"| {way.name} | {' | '.join(cells)} | {processor:.0f} | {processor / first[2]:.2f}x |", flush=True)


def best_of(each: list[Figures]) -> tuple[float, ...]:
    """(largest memory, least seconds of a step, least processor seconds) of some trainings."""
    return max(one.memory for one in each), *(min(getattr(one, name) for one in each) for name in TIMES)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/training_memory.py --shapes smollm2 --chunks 256 --ranks 16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="models (all)")
    parser.add_argument("--chunks", nargs="*", type=int, default=[256], help="tokens of a chunk (256)")
    parser.add_argument("--ranks", nargs="*", type=int, default=[16], help="of LoRA (16)")
    parser.add_argument("--sequence-length", type=int, default=2048, help="tokens of a row (2048)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a training (3)")
    parser.add_argument("--rounds", type=int, default=1, help="trainings of each way (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the process (1)")
    args = parser.parse_args()
    ways = [Way(), *(Way(chunk=chunk) for chunk in args.chunks), *(Way(rank=rank) for rank in args.ranks)]
    ways += [Way(chunk, rank) for chunk in args.chunks for rank in args.ranks]
    for shape in args.shapes:
        compare(shape, ways, args)
    print(f"\nPython {platform.python_version()}, torch {version('torch')}; ", end="")
    print(f"{args.threads} threads of {os.cpu_count()} cores, {platform.machine()}")


if __name__ == "__main__":
    exit_cleanly(main)
