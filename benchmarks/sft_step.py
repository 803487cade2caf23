"""A packed step against a padded batch of the same samples: the speed-up, next to what the positions predict.

Rows of a packed folder are trained (forward and backward pass, float32, one rank) in two ways, in turn: packed, as the
stage `sft` does it; and their instances in random order, in batches that are padded to the longest of each, as without
packing. The summed losses must agree.
"""

import argparse
import math
import os
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path

from megatron_chimed.backend.quiet import silence_import_warnings
from megatron_chimed.errors import InputError, exit_cleanly

silence_import_warnings()

import torch  # noqa: E402

from megatron_chimed.backend import cpu  # noqa: E402

if cpu.is_needed():
    cpu.install()

from megatron_chimed.convert import architecture as arch  # noqa: E402
from megatron_chimed.convert.model import build_model  # noqa: E402
from megatron_chimed.packing.packed_rows import PackedRows, row_arrays  # noqa: E402
from megatron_chimed.stages.losses import masked_nll  # noqa: E402
from megatron_chimed.stages.options import SftConfig  # noqa: E402
from megatron_chimed.stages.sft import forward_step  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def make_model(vocab_size: int, length: int) -> torch.nn.Module:
    """The quickstart's shape for another vocabulary and length."""
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": vocab_size, "max_position_embeddings": length,
    }  # fmt: skip
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    model = build_model(arch.from_hf(config, "config"), torch.float32, gather_logits=False)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02, generator=draw) if parameter.dim() > 1 else parameter.data.fill_(1)
    return model


def as_packed(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of rows."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def instances(row: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The row's instances one by one."""
    starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
    bounds = zip(starts, [*starts[1:], len(row["tokens"])], strict=True)
    return [{name: tensor[a:b] for name, tensor in row.items()} for a, b in bounds if row["source"][a] >= 0]


def as_padded(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Instances as a batch [instances, longest], padding not learnt."""
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([sample[name] for sample in samples], batch_first=True)
        for name in ("tokens", "labels", "loss_mask")
    }
    return batch | {"position_ids": torch.arange(batch["tokens"].size(1)).expand_as(batch["tokens"])}


def packed_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Summed loss; gradients are left behind."""
    nll, loss = forward_step(SftConfig(), iter([batch]), model, ())
    total = loss(nll)[0]
    total.backward()
    return total.item()


def padded_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """The same over a padded batch."""
    batch = {name: tensor.cuda(non_blocking=True) for name, tensor in batch.items()}
    nll = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    total = masked_nll(batch["loss_mask"], nll)[0]
    total.backward()
    return total.item()


def timed(step, model, batches) -> tuple[float, float]:
    """(seconds, summed loss) of one pass over the batches."""
    model.zero_grad()
    start = time.perf_counter()
    total = sum(step(model, batch) for batch in batches)
    return time.perf_counter() - start, total


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/sft_step.py --packed runs/demo/sft/train-256 --rows 64 --micro-batch 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--packed", type=Path, default=ROOT / "runs/demo/sft/train-256", help="folder of tools/pack_sft.py"
    )
    parser.add_argument("--rows", type=int, default=16, help="rows of a pass (16)")
    parser.add_argument("--micro-batch", type=int, default=1, help="rows of a packed step (1)")
    parser.add_argument("--batch", type=int, default=16, help="instances of a padded batch (16, the paper's)")
    parser.add_argument("--runs", type=int, default=3, help="passes of each (3)")
    args = parser.parse_args()
    packed = PackedRows(args.packed)
    chosen = torch.linspace(0, len(packed) - 1, min(args.rows, len(packed))).long().tolist()
    rows = [{name: torch.from_numpy(v) for name, v in row_arrays(packed, row).items()} for row in chosen]
    model = make_model(packed.manifest["vocab_size"], packed.sequence_length).train()
    samples = [sample for row in rows for sample in instances(row)]
    random.Random(0).shuffle(samples)
    padded = [as_padded(samples[i : i + args.batch]) for i in range(0, len(samples), args.batch)]
    joined = [as_packed(rows[i : i + args.micro_batch]) for i in range(0, len(rows), args.micro_batch)]
    batches = {"packed": joined, "padded": padded}
    steps, seconds = {"packed": packed_step, "padded": padded_step}, {"packed": [], "padded": []}
    for number in range(args.runs + 1):  # the first pass warms up
        losses = {}
        for name, step in steps.items():
            taken, losses[name] = timed(step, model, batches[name])
            seconds[name] += [taken] if number else []
        if not math.isclose(losses["packed"], losses["padded"], rel_tol=1e-5):
            raise InputError(f"{args.packed}: the two ways differ in their losses; this is no comparison")
    positions = {name: sum(batch["tokens"].numel() for batch in each) for name, each in batches.items()}
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    print("| | seconds | positions | positions/s |\n|---|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {positions[name]:,} | {positions[name] / median:,.0f} |")
    print(f"\nspeed-up {medians['padded'] / medians['packed']:.2f}x; ", end="")
    print(f"the positions predict {positions['padded'] / positions['packed']:.2f}x")
    print(f"{len(samples)} instances in {len(rows)} rows or batches of {args.batch}; ", end="")
    print(f"rows of {packed.sequence_length}, the quickstart's model with {packed.manifest['vocab_size']} ids")
    print(f"Python {platform.python_version()}, torch {version('torch')}; {os.cpu_count()} cores, {platform.machine()}")


if __name__ == "__main__":
    exit_cleanly(main)
