"""Models, gradient buffers and optimizers as Megatron builds them on ranks of a fake process group: their bytes.

``python plan_worker.py CASES.json``: a list of cases (see `build`); prints a JSON line for each.
"""

# ruff: noqa: E402  the CPU must be in place before Megatron is imported

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from megatron_chimed import cpu

cpu.install()

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_chimed.config import ModelOptions
from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.family import Sizes
from megatron_chimed.convert.llama import FAMILIES
from megatron_chimed.convert.model import transformer_config
from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.models.reward import build_reward
from megatron_chimed.plan.rank import allocated


def build(case: dict) -> torch.nn.Module:
    """This rank's model. case: sizes, tied, head, qk_norm, multiple, half, tp, pp, dp, last (pipeline stage)."""
    sizes = Sizes(**case["sizes"])
    architecture = Architecture(FAMILIES[0], case["head"], case["tied"], sizes, 1e-5, 64, 10000)
    dtype = torch.bfloat16 if case["half"] else torch.float32
    layers = replace(
        transformer_config(architecture, dtype),
        pipeline_model_parallel_size=case["pp"],
        qk_layernorm=case["qk_norm"],
        calculate_per_token_loss=True,
    )
    config = SimpleNamespace(
        transformer=layers,
        seq_length=64,
        fp16_lm_cross_entropy=False,
        parallel_output=True,
        share_embeddings_and_output_weights=case["tied"],
        position_embedding_type="rope",
        rotary_percent=1.0,
        rotary_base=10000,
        rope_scaling=False,
        rope_scaling_factor=1.0,
        seq_len_interpolation_factor=None,
        scatter_embedding_sequence_parallel=True,
        num_ids=sizes.vocab,
    )
    multiple = case["multiple"] * case["tp"]
    return {"lm": build_gpt, "reward": build_reward}[case["head"]](
        ModelOptions(),
        config,
        vocab_size=-(-sizes.vocab // multiple) * multiple,
        pre_process=not case["last"] or case["pp"] == 1,
        post_process=case["last"] or case["pp"] == 1,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )


def measure(case: dict) -> dict[str, int]:
    """Parameters and bytes of this rank after a step of the optimizer."""
    world = case["tp"] * case["pp"] * case["dp"]
    rank = world - case["tp"] * case["dp"] if case["last"] else 0  # the first one of its pipeline stage
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(case["tp"], case["pp"], create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
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
    found = allocated([model], optimizer) | {"parameters": parameters}
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(measure(one)), flush=True)
