"""Tokens per second of the inference engine against transformers' generate: one model, the same prompts, in turn.

The prompts are those of dialogues, of different lengths; every answer goes on for --new-tokens, greedily, past any EOS,
in float32. transformers pads in front, ours not at all. Batches hold the same prompts on both sides, and the texts are
compared.
"""

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.inference.batching import batches
from megatron_chimed.inference.megatron_engine import MegatronEngine as Engine
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.jsonl import read_json_lines
from megatron_chimed.records import Dialogue
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]

Texts = list[list[int]]


def read_prompts(path: Path, tokenizer: Path, count: int) -> Texts:
    """The prompts of the first questions in a file of dialogues, over and over if there are fewer."""
    renderer = Renderer(Template(), load_tokenizer(tokenizer))
    dialogues = [Dialogue.from_row(row) for _, row in itertools.islice(read_json_lines(path), count)]
    prompts = [renderer.render_prompt(dialogue.turns[:1]).tolist() for dialogue in dialogues]
    return [prompts[number % len(prompts)] for number in range(count)]


def by_engine(engine: Engine, prompts: Texts, new_tokens: int) -> Texts:
    """New tokens of each prompt."""
    requests = [Request(prompt, SamplingParams(new_tokens, temperature=0)) for prompt in prompts]
    done = dict(pair for batch in engine.generate(requests, stop=[]) for pair in batch)
    return [done[number].tokens for number in range(len(prompts))]


def by_transformers(model, batch_size: int, prompts: Texts, new_tokens: int) -> Texts:
    """The same."""
    done: dict[int, list[int]] = {}
    for batch in batches([len(prompt) for prompt in prompts], batch_size):
        longest = max(len(prompts[number]) for number in batch)
        ids = torch.tensor([[0] * (longest - len(prompts[number])) + prompts[number] for number in batch])
        mask = torch.tensor([[0] * (longest - len(prompts[n])) + [1] * len(prompts[n]) for n in batch])
        ids, mask = ids.to(model.device), mask.to(model.device)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens)
        done |= dict(zip(batch, out[:, longest:].tolist(), strict=True))
    return [done[number] for number in range(len(prompts))]


def load_transformers(folder: Path, dtype: torch.dtype = torch.float32):
    """The model, which goes on past EOS."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def measure(ways: dict[str, Callable[[], Texts]], runs: int) -> tuple[dict[str, float], dict[str, Texts]]:
    """Median seconds of each way, in turn, behind one round that warms up; and the texts."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts = {}
    for number in range(runs + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            texts[name] = way()
            seconds[name] += [time.perf_counter() - start] if number else []
    return {name: statistics.median(each) for name, each in seconds.items()}, texts


def agreement(texts: dict[str, Texts]) -> dict[str, float]:
    """The share of each way's texts that are the reference's to the last token."""
    expected = texts["transformers"]
    equal = {name: [a == b for a, b in zip(found, expected, strict=True)] for name, found in texts.items()}
    return {name: sum(each) / len(each) for name, each in equal.items()}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/generation.py --batch-sizes 1 16 64 --new-tokens 96",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    final = ROOT / "runs/demo/rejection/round-02/train/selected"
    parser.add_argument("--megatron", type=Path, default=final, help="Megatron checkpoint")
    parser.add_argument("--hf", type=Path, default=ROOT / "runs/demo/hf", help="the same model for transformers")
    parser.add_argument("--dialogues", type=Path, default=ROOT / "runs/demo/sft/heldout.jsonl", help="prompts")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64], help="(1 16 64)")
    parser.add_argument("--tensor-parallel", type=int, nargs="+", default=[1, 2], help="(1 2)")
    parser.add_argument("--new-tokens", type=int, default=96, help="(96)")
    parser.add_argument("--runs", type=int, default=3, help="(3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side, shared by its ranks (cores)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.hf.is_dir():
        raise InputError(f"{args.hf}: no such folder; `make demo` makes it")
    prompts = read_prompts(args.dialogues, args.hf, max(args.batch_sizes))
    reference = load_transformers(args.hf)
    engines = {}
    for ranks in args.tensor_parallel:
        os.environ["OMP_NUM_THREADS"] = str(max(1, args.threads // ranks))
        engines[f"ours, TP {ranks}"] = Engine(args.megatron, tensor_parallel=ranks, progress=False)
    print("| batch | way | tokens/s | of transformers | equal texts |\n|---|---|---|---|---|")
    for size in args.batch_sizes:
        asked = prompts[:size]
        ways = {"transformers": lambda s=size, a=asked: by_transformers(reference, s, a, args.new_tokens)}
        for name, engine in engines.items():
            engine.batch_size = size
            ways[name] = lambda e=engine, a=asked: by_engine(e, a, args.new_tokens)
        seconds, texts = measure(ways, args.runs)
        for name, share in agreement(texts).items():
            speed = size * args.new_tokens / seconds[name]
            ratio = seconds["transformers"] / seconds[name]
            print(f"| {size} | {name} | {speed:,.0f} | {ratio:.2f}x | {share:.0%} |", flush=True)
    for engine in engines.values():
        engine.close()
    print(
        f"\nPython {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}; ",
        end="",
    )
    print(f"{os.cpu_count()} cores, {platform.machine()}")


if __name__ == "__main__":
    exit_cleanly(main)
