"""Models, gradient buffers and optimizers as Megatron builds them on ranks of a fake process group: their bytes.

``python plan_worker.py CASES.json``: a list of cases (see `build`); prints a JSON line for each. One with "recompute"
is about what a layer keeps for its backward pass.
"""

# ruff: noqa: E402  the CPU must be in place before Megatron is imported

import json
import sys
from pathlib import Path

from megatron_chimed.backend import cpu

cpu.install()
cpu._installed.has_bfloat16 = True  # what a layer keeps is that of a GPU

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.families import FAMILIES
from megatron_chimed.convert.model import gpt_config
from megatron_chimed.convert.routing import Routing
from megatron_chimed.convert.sizes import Sizes
from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.models.options import LoraOptions, ModelOptions
from megatron_chimed.models.reward import build_reward
from megatron_chimed.plan.dry_run_worker import allocated

RECOMPUTE = {
    "core_attn": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "moe": {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
LENGTH = 128


def build(case: dict) -> torch.nn.Module:
    """This rank's model. case: sizes, tied, head, family, multiple, half, tp, pp, dp, last (pipeline stage); with
    adapters lora; of a model with experts also top (of a token), ep, etp."""
    sizes = Sizes(**case["sizes"])
    family = next(one for one in FAMILIES if one.name == case["family"])
    routing = Routing(case["top"], True, 0.0, False) if "top" in case else None
    architecture = Architecture(family, case["head"], case["tied"], sizes, 1e-5, 64, routing=routing)
    dtype = torch.bfloat16 if case["half"] else torch.float32
    config = gpt_config(
        architecture,
        dtype,
        gather_logits=False,
        pipeline_model_parallel_size=case["pp"],
        expert_model_parallel_size=case.get("ep", 1),
        expert_tensor_parallel_size=case.get("etp", case["tp"]),
        calculate_per_token_loss=True,
        sequence_parallel=case["tp"] > 1 and "recompute" in case,
        bias_activation_fusion="recompute" in case,
        **RECOMPUTE.get(case.get("recompute"), {}),
    )
    multiple = case["multiple"] * case["tp"]
    return {"lm": build_gpt, "reward": build_reward}[case["head"]](
        ModelOptions(lora=case.get("lora") and LoraOptions(**case["lora"])),
        config,
        vocab_size=-(-sizes.vocab // multiple) * multiple,
        pre_process=not case["last"] or case["pp"] == 1,
        post_process=case["last"] or case["pp"] == 1,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )


def start(case: dict) -> None:
    """This process as the first rank of its pipeline stage."""
    world = case["tp"] * case["pp"] * case["dp"]
    rank = world - case["tp"] * case["dp"] if case["last"] else 0
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    experts = {"expert_model_parallel_size": case.get("ep", 1), "expert_tensor_parallel_size": case.get("etp")}
    parallel_state.initialize_model_parallel(case["tp"], case["pp"], create_gloo_process_groups=False, **experts)
    tensor_parallel.model_parallel_cuda_manual_seed(1)


def measure(case: dict) -> dict[str, int]:
    """Parameters and bytes of this rank after a step of the optimizer."""
    model = build(case)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if case["half"]:
        model = Float16Module(model.config, model)
    sharded = case["distributed_optimizer"]
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=sharded, overlap_grad_reduce=False
    )
    model = DistributedDataParallel(model.config, buffers, model)
    settings = OptimizerConfig(
        optimizer="adam", lr=1e-3, bf16=case["half"], use_distributed_optimizer=sharded, clip_grad=0.0
    )
    optimizer = get_megatron_optimizer(settings, [model], use_gloo_process_groups=False)
    optimizer.step()
    return allocated([model], optimizer) | {"parameters": parameters}


def fused_dropout(x: torch.Tensor, p: float, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Keeps a mask of bools, as on a GPU."""
    return torch.native_dropout(x, p, True)[0] if training and p else x


class FusedNorm(torch.autograd.Function):
    """Keeps what the RMSNorm of a GPU keeps: its input and a scale for each token. (A CPU's keeps float32 copies.)"""

    @staticmethod
    def forward(ctx, x, weight):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True))
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).to(x.dtype) * weight


def kept(case: dict) -> dict[str, int]:
    """Bytes that a layer keeps: those of the model's layers, by their storages, without what is kept but once."""
    torch.nn.functional.dropout = fused_dropout
    torch.nn.functional.rms_norm = lambda x, shape, weight, eps: FusedNorm.apply(x, weight)
    totals = []
    for layers in (1, 2):
        model = build(case | {"sizes": case["sizes"] | {"layers": layers}}).bfloat16()
        known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages = {}

        def keep(tensor, known=known, storages=storages):
            storage = tensor.untyped_storage()
            if tensor.numel() > 1 and storage.data_ptr() not in known:
                storages[storage.data_ptr()] = storage  # held, so that no other one gets its place
            return tensor

        shape = (LENGTH // case["tp"], 1, case["sizes"]["hidden"])
        hidden = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.decoder(hidden, attention_mask=None, rotary_pos_emb=model.rotary_pos_emb(LENGTH))
        totals.append(sum(storage.nbytes() for storage in storages.values()))
    return {"kept": totals[1] - totals[0]}


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        start(one)
        print(json.dumps((kept if "recompute" in one else measure)(one)), flush=True)
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
