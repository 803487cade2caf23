"""One rank of tests/integration/test_families.py: models of every family in one layout after the other.

FOLDER/NAME holds, for each case, `megatron` (a converted checkpoint) and batch.safetensors. What is computed in a
layout goes to FOLDER/NAME/LAYOUT.safetensors, and the gradients, as a checkpoint, to FOLDER/NAME/LAYOUT.
"""

import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.utils import is_pp_first_stage, is_pp_last_stage
from megatron.core.utils import unwrap_model
from safetensors.torch import load_file, save_file

from megatron_chimed.checkpoints import resolve, write_tracker
from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.megatron_args import read_megatron
from megatron_chimed.convert.model import build_part, gpt_config
from megatron_chimed.convert.rope import Rope
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.inference import step as step_of_one_token
from megatron_chimed.inference.decode import generate
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.models.branches import describe_row
from support.families import NEW, PROMPT, has_gradients

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass
class Layout:
    """How one model is spread over all ranks."""

    name: str
    tp: int = 1
    pp: int = 1
    ep: int = 1
    sequence_parallel: bool = False


def build(model: Architecture, layout: Layout) -> torch.nn.Module:
    """This rank's part, without its weights, as the trainer wraps it."""
    changes = {"pipeline_model_parallel_size": layout.pp, "sequence_parallel": layout.sequence_parallel}
    changes |= {"expert_model_parallel_size": layout.ep, "moe_token_dispatcher_type": "alltoall"}
    changes |= {"calculate_per_token_loss": True, "variable_seq_lengths": False}
    config = gpt_config(model, torch.float32, gather_logits=False, **changes)
    group = parallel_state.get_pipeline_model_parallel_group()
    part = build_part(model, config, pre_process=is_pp_first_stage(group), post_process=is_pp_last_stage(group))
    part.config.finalize_model_grads_func = finalize_model_grads
    return DistributedDataParallel(part.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), part)


def load(gpt: torch.nn.Module, folder: Path, model: Architecture, built: Architecture) -> None:
    """The weights of a checkpoint; where a control was built untied, its output layer stays as it is."""
    wanted = gpt.sharded_state_dict()
    if model.tied != built.tied:
        wanted = {name: tensor for name, tensor in wanted.items() if "output_layer" not in name}
    gpt.load_state_dict(
        dist_checkpointing.load({"model": wanted}, str(folder))["model"], strict=model.tied == built.tied
    )


def run(ddp: torch.nn.Module, tokens: torch.Tensor, positions, loss, forward_only=True, **inputs) -> None:
    """One micro batch [b, s] through all pipeline stages; `loss` takes the last one's output."""

    def step(batches, model):
        next(batches)
        return model(tokens, positions, None, **inputs), loss

    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([None]),
        model=[ddp],
        num_microbatches=1,
        seq_length=tokens.size(1),
        micro_batch_size=tokens.size(0),
        forward_only=forward_only,
    )


def outputs_of(ddp, layout: Layout, model: Architecture, batch: Tensors) -> Tensors:
    """Logits or rewards on the last stage, and, where one rank has all layers, greedy continuations by the cache."""
    kept = {}

    def keep(output):
        if model.head == "lm":
            output = tensor_parallel.gather_from_tensor_model_parallel_region(output)[..., : model.sizes.vocab]
        kept["outputs"] = output.detach() if model.head == "lm" else output.detach()[:, -1]
        return output.sum(), torch.tensor(1), {}

    tokens = batch["tokens"]
    ddp.eval()  # Megatron trains no experts at TP 2 without sequence parallelism
    with torch.no_grad():
        run(ddp, tokens, torch.arange(tokens.size(1)).expand_as(tokens), keep)
        if model.head == "lm" and layout.pp == 1 and not layout.sequence_parallel:
            params = SamplingParams(max_tokens=NEW, temperature=0.0)
            requests = [Request(row.tolist(), params) for row in tokens[:, :PROMPT]]
            made = generate(ddp, requests, [], num_ids=model.sizes.vocab, max_positions=model.max_positions)
            kept["generated"] = torch.tensor([one.tokens for one in made])
            kept["usual layers"] = torch.tensor(step_of_one_token._is_plain(unwrap_model(ddp)))
            with mock.patch.object(step_of_one_token, "_is_plain", lambda model: False):
                made = generate(ddp, requests, [], num_ids=model.sizes.vocab, max_positions=model.max_positions)
            kept["generated by modules"] = torch.tensor([one.tokens for one in made])
    ddp.train()
    return kept


def add_gradients(ddp, model: Architecture, batch: Tensors) -> None:
    """main_grad: gradients of the packed row's mean loss, which of a reward model is that of `families.expected`."""
    positions, mask = batch["positions"], batch["loss_mask"]
    packed = describe_row(positions)

    def masked(nll):
        return (nll * mask).sum(), mask.sum().int(), {}

    def weighed(rewards):
        last = packed.cu_seqlens_q[1:].long() - 1
        total = (rewards[0, last] * torch.arange(1, len(last) + 1)).sum()
        return total, torch.tensor(mask.numel(), dtype=torch.int), {}

    ddp.zero_grad_buffer()
    more = {"labels": batch["labels"]} if model.head == "lm" else {}
    loss = masked if model.head == "lm" else weighed
    run(ddp, batch["packed"], positions, loss, forward_only=False, packed_seq_params=packed, **more)


def save_gradients(gpt, folder: Path, args) -> None:
    """The gradients in the place of the weights, as a checkpoint that can be exported."""
    for parameter in gpt.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(parameter.main_grad)
    place = folder / "release"
    if torch.distributed.get_rank() == 0:
        place.mkdir(parents=True)
        write_tracker(folder, "release")
    torch.distributed.barrier()
    dist_checkpointing.save({"model": gpt.sharded_state_dict(), "args": args}, str(place))


def named(gpt, ending: str) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in gpt.named_parameters() if name.endswith(ending)]


def leave_out_biases(gpt) -> None:
    for bias in named(gpt, "linear_qkv.bias"):
        bias.data.zero_()


def swap_norms(gpt) -> None:
    for one, other in zip(named(gpt, "q_layernorm.weight"), named(gpt, "k_layernorm.weight"), strict=True):
        one.data, other.data = other.data.clone(), one.data.clone()


def new_output_layer(gpt) -> None:
    named(gpt, "output_layer.weight")[0].data.normal_(0, 0.2, generator=torch.Generator().manual_seed(3))


def exchange_experts(gpt) -> None:
    for layer in gpt.decoder.layers:
        one, other = list(layer.mlp.experts.local_experts)[:2]
        for mine, its in zip(one.parameters(), other.parameters(), strict=True):
            mine.data, its.data = its.data.clone(), mine.data


def gradient_of_one_rank(ddp, model: Architecture, batch: Tensors) -> torch.Tensor:
    """That of the first layer's norm of queries, [head_dim], without what the other ranks have."""
    config, kept = ddp.config, (ddp.config.qk_layernorm, ddp.config.sequence_parallel)
    finalize = config.finalize_model_grads_func

    def leave_alone(*args, **kwargs):
        config.qk_layernorm = config.sequence_parallel = False  # either tells that these are to be added up
        finalize(*args, **kwargs)

    config.finalize_model_grads_func = leave_alone
    add_gradients(ddp, model, batch)
    config.finalize_model_grads_func, (config.qk_layernorm, config.sequence_parallel) = finalize, kept
    return named(ddp.module, "q_layernorm.weight")[0].main_grad.clone()


REPLACED = {
    "positions not scaled": lambda model: dataclasses.replace(model, rope=Rope(model.rope.base)),
    "attention factor ignored": lambda model: dataclasses.replace(
        model, rope=dataclasses.replace(model.rope, attention_factor=1.0)
    ),
    "Megatron's constants of llama3": lambda model: dataclasses.replace(
        model,
        rope=dataclasses.replace(model.rope, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192),
    ),
    "tied forgotten": lambda model: dataclasses.replace(model, tied=False),
    "scores normalised": lambda model: dataclasses.replace(
        model, routing=dataclasses.replace(model.routing, normalized=True)
    ),
}
CHANGED = {
    "biases left out": leave_out_biases,
    "norms of q and k swapped": swap_norms,
    "tied forgotten": new_output_layer,
    "two experts exchanged": exchange_experts,
}


def answer(folder: Path, layout: Layout, controls: list[str]) -> None:
    """All that is asked of one case in one layout."""
    source = TorchDistCheckpoint(resolve(folder / "megatron"))
    model, batch = read_megatron(source), load_file(folder / "batch.safetensors")
    if layout.ep > 1 and not model.routing:
        return
    results = {}
    for control in controls:
        built = REPLACED.get(control, lambda model: model)(model)
        ddp = build(built, layout)
        load(ddp.module, source.folder, model, built)
        CHANGED.get(control, lambda gpt: None)(ddp.module)
        results[f"control: {control}"] = outputs_of(ddp, layout, model, batch)["outputs"]
    ddp = build(model, layout)
    load(ddp.module, source.folder, model, model)
    results |= outputs_of(ddp, layout, model, batch)
    if has_gradients(layout.name, bool(model.routing)):
        if model.head == "lm" and layout.tp > 1 and ddp.config.qk_layernorm:
            results["control: gradient of q_norm on one rank"] = gradient_of_one_rank(ddp, model, batch)
        add_gradients(ddp, model, batch)
        save_gradients(ddp.module, folder / layout.name, source.args)
    last = torch.distributed.get_world_size() - 1
    if torch.distributed.get_rank() == last:
        results = {name: tensor.contiguous() for name, tensor in results.items()}
        save_file(results, folder / f"{layout.name}.safetensors")


def main() -> None:
    """argv: FOLDER, the layouts and the controls of each case, both as JSON."""
    folder, layouts, controls = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for values in layouts:
        layout = Layout(**values)
        parallel_state.initialize_model_parallel(layout.tp, layout.pp, expert_model_parallel_size=layout.ep)
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        for case in sorted(path.parent for path in folder.glob("*/batch.safetensors")):
            answer(case, layout, controls.get(case.name, []) if layout.name == "TP 1" else [])
        parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
