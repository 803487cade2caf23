"""One rank of test_sft.py: gradients of a packed step, of its instances apart, and with attention across, as JSON.

Arguments: packed folder, Megatron folder, sequence length.
"""

import functools
import json
import sys
from pathlib import Path

import torch

from megatron_chimed import cpu

cpu.install()

from megatron_chimed.config import SftConfig  # noqa: E402
from megatron_chimed.convert import architecture as arch  # noqa: E402
from megatron_chimed.convert.model import build_model, load_weights  # noqa: E402
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint, find_iteration  # noqa: E402
from megatron_chimed.datasets.sft import SftDatasetConfig, build_sft_datasets  # noqa: E402
from megatron_chimed.losses import masked_nll  # noqa: E402
from megatron_chimed.models.prediction import keep_predictions, last_predictions  # noqa: E402
from megatron_chimed.stages.sft import forward_step  # noqa: E402

ROWS = 4


def step(gpt, datasets, isolate: bool) -> tuple[float, list[torch.Tensor], dict]:
    """(loss, gradients, report) of one step of the stage over ROWS rows, each a micro batch, normalised once."""
    gpt.zero_grad()
    total = count = 0
    for number in range(ROWS):
        batch = {name: tensor[None] for name, tensor in datasets[0][number].items()}
        if not isolate:
            batch["position_ids"] = torch.arange(batch["tokens"].size(1))[None]
        nll, loss = forward_step(SftConfig(isolate_instances=isolate), iter([batch]), gpt, datasets)
        summed, targets, report = loss(nll)
        summed.backward()
        total, count = total + summed.item(), count + int(targets)
    return total / count, [p.grad / count for p in gpt.parameters()], report


def step_apart(gpt, dataset) -> tuple[float, list[torch.Tensor], int]:
    """(loss, gradients, number of instances): every instance a dense forward pass of its own, without padding."""
    gpt.zero_grad()
    total = count = instances = 0
    for number in range(ROWS):
        row = dataset[number]
        starts = (row["position_ids"] == 0).nonzero().flatten().tolist() + [len(row["tokens"])]
        for begin, end in zip(starts, starts[1:], strict=False):
            piece = {name: tensor[begin:end][None] for name, tensor in row.items()}
            if piece["source"][0, 0] < 0:
                continue
            nll = gpt(piece["tokens"], piece["position_ids"], None, labels=piece["labels"])
            summed, targets, _ = masked_nll(piece["loss_mask"], nll)
            summed.backward()
            total, count, instances = total + summed.item(), count + int(targets), instances + 1
    return total / count, [p.grad / count for p in gpt.parameters()], instances


def largest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference of any gradient, by the largest gradient of that parameter where it is above 1."""
    differences = [(a - b).abs().max() / max(1.0, b.abs().max()) for a, b in zip(one, other, strict=True)]
    result = torch.stack(differences).max()
    torch.distributed.all_reduce(result, op=torch.distributed.ReduceOp.MAX)
    return result.item()


def predictions_agree(gpt, row) -> bool:
    """Whether what the model remembers is the argmax of the whole logits."""
    with torch.no_grad():
        local = gpt(row["tokens"][None], row["position_ids"][None], None).contiguous()
    parts = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, local)
    return torch.equal(torch.cat(parts, dim=-1).argmax(-1), last_predictions(gpt))


def main(packed: str, megatron: str, length: str) -> None:
    """Compute and print."""
    torch.distributed.init_process_group("gloo")
    source = TorchDistCheckpoint(find_iteration(megatron))
    model = arch.from_megatron_args(source.args(), "lm", megatron)
    gpt = build_model(model, torch.float32, gather_logits=False)
    load_weights(gpt, Path(source.folder))
    keep_predictions(gpt, gpt.pg_collection.tp)
    config = functools.partial(SftDatasetConfig, random_seed=7, sequence_length=int(length), split="80,20,0")
    datasets = build_sft_datasets(config(blend=([packed], None), vocab_size=10**6), (ROWS, 0, 0))
    loss, gradients, report = step(gpt, datasets, isolate=True)
    apart_loss, apart, instances = step_apart(gpt, datasets[0])
    across_loss, across, _ = step(gpt, datasets, isolate=False)
    figures = {
        "loss": abs(loss - apart_loss),
        "gradients": largest(gradients, apart),
        "across_loss": abs(across_loss - apart_loss),
        "across_gradients": largest(across, apart),
        "instances": instances,
        "parameters": len(gradients),
        "predictions": predictions_agree(gpt, datasets[0][0]),
        "accuracy": (report["response accuracy"][0] / report["response accuracy"][1]).item(),
    }
    if torch.distributed.get_rank() == 0:
        print(json.dumps(figures))
    sys.stdout.flush()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
