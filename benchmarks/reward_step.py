"""A step on ranked answers against the same pairs flattened, as other trainers take them: questions per second.

The same questions are trained (forward and backward pass, float32, one rank) in four ways, in turn: each prompt and
each answer once, as the stages `reward` and `dpo` do it; the prompt before each answer; each adjacent pair as two texts
of its own, packed with the same machinery; and, of the reward model, these pairs in batches that are padded to the
longest text. The summed losses must agree.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
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
from megatron_chimed.datasets.preferences import PreferenceDataset  # noqa: E402
from megatron_chimed.datasets.ranking import RankingDataset  # noqa: E402
from megatron_chimed.jsonl import read_json_lines, write_json_lines  # noqa: E402
from megatron_chimed.packing.packed_rows import PackedRows  # noqa: E402
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings  # noqa: E402
from megatron_chimed.packing.reference import compute_reference  # noqa: E402
from megatron_chimed.records import RankedGroup  # noqa: E402
from megatron_chimed.stages import dpo, reward  # noqa: E402
from megatron_chimed.stages.losses import pairwise_ranking  # noqa: E402
from megatron_chimed.stages.options import DpoConfig, RewardConfig  # noqa: E402
from megatron_chimed.text.renderer import Renderer  # noqa: E402
from megatron_chimed.text.template import Template  # noqa: E402
from megatron_chimed.text.tokenizer import load_tokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
Batches = list[dict[str, torch.Tensor]]


def make_model(stage: str, vocab_size: int, length: int) -> torch.nn.Module:
    """The quickstart's shape, for the stage reward with a head that is not zero."""
    name = {"reward": "LlamaForSequenceClassification", "dpo": "LlamaForCausalLM"}[stage]
    config = {
        "architectures": [name], "num_labels": 1, "hidden_size": 256,
        "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": vocab_size, "max_position_embeddings": length,
    }  # fmt: skip
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    model = build_model(arch.from_hf(config, "config"), torch.float32, gather_logits=False)
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


def with_prompts(groups: list[RankedGroup], renderer: Renderer, share: float) -> list[RankedGroup]:
    """The same groups, whose questions are repeated until a prompt has this share of its question's tokens: of prompt
    and answers, each once."""
    found = []
    for group in groups:
        size = {text: len(renderer.tokenizer.encode(text)) for text in (group.turns[-1].text, *group.responses) if text}
        answers = sum(size[text] for text in group.responses if text)
        times = round(share / (1 - share) * answers / size[group.turns[-1].text])
        turn = replace(group.turns[-1], text=group.turns[-1].text * max(1, times))
        found.append(replace(group, turns=(*group.turns[:-1], turn)))
    return found


def packed_rows(
    folder: Path, stage: str, groups: list[RankedGroup], renderer: Renderer, length: int, shared_prompt: bool
) -> list:
    """The samples of all packed rows of some groups."""
    source = folder.with_suffix(".jsonl")
    write_json_lines(source, (group.to_row() for group in groups))
    options = RankingRowOptions(length, progress=False, shared_prompt=shared_prompt)
    content = pack_rankings([str(source)], folder, renderer, options)
    if stage == "dpo":
        compute_reference(PackedRows(folder), "0" * 64, {}, lambda pairs: [-50.0] * len(pairs), lambda done: None)
    config = PackedDatasetConfig(
        random_seed=1, sequence_length=length, blend=([str(folder)], None), split="1,0,0", vocab_size=1 << 30
    )
    dataset = build_packed_datasets(DATASETS[stage], config, (content["rows"], 0, 0))[0]
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


def reward_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed loss of the reward model on a batch of packed rows."""
    rewards, loss = reward.forward_step(RewardConfig(), iter([dict(batch)]), model, {"pairing": "adjacent"})
    return loss(rewards)[0]


def dpo_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed loss of preference optimization on a batch of packed rows."""
    nll, loss = dpo.forward_step(DpoConfig(), iter([dict(batch)]), model, {"pairing": "adjacent"})
    return loss(nll)[0]


DATASETS = {"reward": RankingDataset, "dpo": PreferenceDataset}
STEPS = {"reward": reward_step, "dpo": dpo_step}


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


def make_ways(
    args: argparse.Namespace, groups: list[RankedGroup], pairs: list[RankedGroup], renderer: Renderer, steps: int
) -> dict[str, tuple[Callable, Batches]]:
    """{way: (step, its batches)}; pairs: the groups flattened."""
    kinds = {
        "each prompt once": (groups, True),
        "a prompt for each answer": (groups, False),
        "pairs, packed": (pairs, False),
    }
    ways = {}
    with tempfile.TemporaryDirectory() as name:
        for number, (way, (kind, shared)) in enumerate(kinds.items()):
            folder = Path(name, str(number))
            rows = packed_rows(folder, args.stage, kind, renderer, args.sequence_length, shared)
            ways[way] = (STEPS[args.stage], stacked(rows, -(-len(rows) // steps)))
    if args.stage == "reward":
        ways["pairs, padded"] = (padded_step, padded(rows, -(-len(pairs) // steps)))
    return ways


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/reward_step.py --questions 96",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo = ROOT / "runs/demo"
    parser.add_argument("--ranked", type=Path, default=demo / "reward/train.jsonl", help="of tools/prepare_rewards.py")
    parser.add_argument("--stage", choices=STEPS, default="reward", help="of the step (reward)")
    parser.add_argument("--prompt-share", type=float, default=0, help="of a question's tokens, at least (as it is)")
    parser.add_argument("--tokenizer", default=str(demo / "tokenizer/tokenizer.model"), help="model or folder")
    parser.add_argument("--questions", type=int, default=96, help="questions of a pass (96)")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens of a row (512)")
    parser.add_argument("--batch", type=int, default=8, help="questions, about, of a step (8, the paper's)")
    parser.add_argument("--runs", type=int, default=3, help="passes of each (3)")
    args = parser.parse_args()
    groups = [RankedGroup.from_row(row) for _, row in read_json_lines(args.ranked)][: args.questions]
    renderer = Renderer(Template(), load_tokenizer(args.tokenizer))
    groups = with_prompts(groups, renderer, args.prompt_share)
    pairs, steps = flattened(groups), -(-len(groups) // args.batch)
    ways = make_ways(args, groups, pairs, renderer, steps)
    model = make_model(args.stage, renderer.tokenizer.vocab_size, args.sequence_length)
    seconds = {way: [] for way in ways}
    for number in range(args.runs + 1):  # the first pass warms up
        losses = []
        for way, (step, batches) in ways.items():
            taken, total = timed(step, model, batches)
            seconds[way] += [taken] if number else []
            losses.append(total)
        if not all(math.isclose(total, losses[0], rel_tol=1e-5) for total in losses):
            raise InputError(
                f"{args.ranked}: the ways differ in their losses {losses}: questions were cut; give longer rows"
            )
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    first = next(iter(medians.values()))
    print("| | seconds | positions | questions/s | each prompt once is |\n|---|---|---|---|---|")
    for way, median in medians.items():
        positions = sum(batch["tokens"].numel() for batch in ways[way][1])
        print(f"| {way} | {median:.2f} | {positions:,} | {len(groups) / median:.1f} | {median / first:.2f}x |")
    print(f"\n{len(groups)} questions, {len(pairs)} pairs, in {steps} steps; loss {losses[0] / len(pairs):.4f} a pair")
    print(f"rows of {args.sequence_length}, the quickstart's model with {renderer.tokenizer.vocab_size} ids")
    print(f"Python {platform.python_version()}, torch {version('torch')}; {os.cpu_count()} cores, {platform.machine()}")


if __name__ == "__main__":
    exit_cleanly(main)
