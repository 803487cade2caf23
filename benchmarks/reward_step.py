"""A step on ranked answers against the same pairs flattened, as other trainers take them: questions per second.

The same questions are trained (forward and backward pass, float32, one rank) in three ways, in turn: each answer once,
as the stage `reward` does it; each adjacent pair as two texts of its own, packed with the same machinery; and these
pairs in batches that are padded to the longest text. The summed losses must agree.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from megatron_chimed.backend.quiet import silence_import_warnings
from megatron_chimed.errors import InputError, exit_cleanly

silence_import_warnings()

import torch  # noqa: E402

from megatron_chimed.backend import cpu  # noqa: E402

cpu.install()

from megatron_chimed.convert import architecture as arch  # noqa: E402
from megatron_chimed.convert.model import build_model  # noqa: E402
from megatron_chimed.datasets.packed_dataset import PackedDatasetConfig, build_packed_datasets  # noqa: E402
from megatron_chimed.datasets.ranking import RankingDataset  # noqa: E402
from megatron_chimed.jsonl import read_json_lines, write_json_lines  # noqa: E402
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings  # noqa: E402
from megatron_chimed.records import RankedGroup  # noqa: E402
from megatron_chimed.stages.losses import pairwise_ranking  # noqa: E402
from megatron_chimed.stages.options import RewardConfig  # noqa: E402
from megatron_chimed.stages.reward import forward_step  # noqa: E402
from megatron_chimed.text.renderer import Renderer  # noqa: E402
from megatron_chimed.text.template import Template  # noqa: E402
from megatron_chimed.text.tokenizer import load_tokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
Batches = list[dict[str, torch.Tensor]]


def make_model(vocab_size: int, length: int) -> torch.nn.Module:
    """The quickstart's shape with a reward head that is not zero."""
    config = {
        "architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "hidden_size": 256,
        "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": vocab_size, "max_position_embeddings": length,
    }  # fmt: skip
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    model = build_model(arch.from_hf(config, "config"), torch.float32)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02, generator=draw) if parameter.dim() > 1 else parameter.data.fill_(1)
    return model.train()


def flattened(groups: list[RankedGroup]) -> list[RankedGroup]:
    """Each pair of answers of neighbouring ranks as a group of its own."""
    pairs = []
    for group in groups:
        ranked = sorted(
            (rank, text) for text, rank in zip(group.responses, group.preference_ranks, strict=True) if text
        )
        for (rank, better), (other, worse) in zip(ranked, ranked[1:], strict=False):
            if rank != other:
                pairs.append(RankedGroup(f"{group.id}:{rank}", group.source, group.turns, (better, worse), (0, 1)))
    return pairs


def packed_rows(folder: Path, name: str, groups: list[RankedGroup], renderer: Renderer, length: int) -> list:
    """The samples of all packed rows of some groups."""
    source = folder / f"{name}.jsonl"
    write_json_lines(source, (group.to_row() for group in groups))
    content = pack_rankings([str(source)], folder / name, renderer, RankingRowOptions(length, progress=False))
    config = PackedDatasetConfig(
        random_seed=1, sequence_length=length, blend=([str(folder / name)], None), split="1,0,0", vocab_size=1 << 30
    )
    dataset = build_packed_datasets(RankingDataset, config, (content["rows"], 0, 0))[0]
    return [dataset[number] for number in range(content["rows"])]


def stacked(rows: list[dict[str, torch.Tensor]], size: int) -> Batches:
    """Rows in batches of `size`."""
    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    return [{name: torch.stack([row[name] for row in part]) for name in part[0]} for part in parts]


def padded(rows: list[dict[str, torch.Tensor]], pairs: int) -> Batches:
    """The pairs of packed rows in batches of `pairs`, each text padded to the longest: better ones first."""
    texts = []
    for row in rows:
        ends = (row["rank"] >= 0).nonzero().flatten().tolist()
        for end in ends:
            start = end - int(row["position_ids"][end])
            texts.append((int(row["rank"][end]), row["tokens"][start : end + 1]))
    both = [(texts[place][1], texts[place + 1][1]) for place in range(0, len(texts), 2)]  # rank 0, then rank 1
    batches = []
    for start in range(0, len(both), pairs):
        better, worse = zip(*both[start : start + pairs], strict=True)
        tokens = torch.nn.utils.rnn.pad_sequence([*better, *worse], batch_first=True)
        lengths = torch.tensor([len(text) for text in (*better, *worse)])
        positions = torch.arange(tokens.size(1)).expand_as(tokens)
        batches.append({"tokens": tokens, "position_ids": positions, "lengths": lengths})
    return batches


def packed_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed loss of a batch of packed rows."""
    rewards, loss = forward_step(RewardConfig(), iter([dict(batch)]), model, ())
    return loss(rewards)[0]


def padded_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed loss of a padded batch of pairs."""
    rewards = model(batch["tokens"], batch["position_ids"], None)
    rewards = rewards[torch.arange(len(rewards)), batch["lengths"] - 1]
    places = torch.arange(len(rewards) // 2)
    rank = torch.arange(len(rewards)) // len(places)
    return pairwise_ranking(rewards, rank, places, places + len(places))[0]


def timed(step: Callable, model: torch.nn.Module, batches: Batches) -> tuple[float, float]:
    """(seconds, summed loss) of one pass over the batches, backward passes included."""
    model.zero_grad()
    start, total = time.perf_counter(), 0.0
    for batch in batches:
        loss = step(model, batch)
        loss.backward()
        total += loss.item()
    return time.perf_counter() - start, total


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/reward_step.py --questions 96",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo = ROOT / "runs/demo"
    parser.add_argument("--ranked", type=Path, default=demo / "reward/train.jsonl", help="of tools/prepare_rewards.py")
    parser.add_argument("--tokenizer", default=str(demo / "tokenizer/tokenizer.model"), help="model or folder")
    parser.add_argument("--questions", type=int, default=96, help="questions of a pass (96)")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens of a row (512)")
    parser.add_argument("--batch", type=int, default=8, help="questions, about, of a step (8, the paper's)")
    parser.add_argument("--runs", type=int, default=3, help="passes of each (3)")
    args = parser.parse_args()
    groups = [RankedGroup.from_row(row) for _, row in read_json_lines(args.ranked)][: args.questions]
    renderer = Renderer(Template(), load_tokenizer(args.tokenizer))
    pairs = flattened(groups)
    with tempfile.TemporaryDirectory() as name:
        ranked, flat = (
            packed_rows(Path(name), kind, each, renderer, args.sequence_length)
            for kind, each in (("ranked", groups), ("flat", pairs))
        )
    steps = -(-len(groups) // args.batch)
    ways = {
        "ranked, each answer once": (packed_step, stacked(ranked, -(-len(ranked) // steps))),
        "pairs, packed": (packed_step, stacked(flat, -(-len(flat) // steps))),
        "pairs, padded": (padded_step, padded(flat, -(-len(pairs) // steps))),
    }
    model = make_model(renderer.tokenizer.vocab_size, args.sequence_length)
    seconds = {way: [] for way in ways}
    for number in range(args.runs + 1):  # the first pass warms up
        losses = []
        for way, (step, batches) in ways.items():
            taken, total = timed(step, model, batches)
            seconds[way] += [taken] if number else []
            losses.append(total)
        if not all(math.isclose(total, losses[0], rel_tol=1e-5) for total in losses):
            raise InputError(f"{args.ranked}: the ways differ in their losses {losses}; this is no comparison")
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    first = next(iter(medians.values()))
    print("| | seconds | positions | questions/s | ranked is |\n|---|---|---|---|---|")
    for way, median in medians.items():
        positions = sum(batch["tokens"].numel() for batch in ways[way][1])
        print(f"| {way} | {median:.2f} | {positions:,} | {len(groups) / median:.1f} | {median / first:.2f}x |")
    print(f"\n{len(groups)} questions, {len(pairs)} pairs, in {steps} steps; loss {losses[0] / len(pairs):.4f} a pair")
    print(f"rows of {args.sequence_length}, the quickstart's model with {renderer.tokenizer.vocab_size} ids")
    print(f"Python {platform.python_version()}, torch {version('torch')}; {os.cpu_count()} cores, {platform.machine()}")


if __name__ == "__main__":
    exit_cleanly(main)
