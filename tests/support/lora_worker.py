"""One rank of tests/integration/test_lora.py: adapters in one layout after the other.

FOLDER/NAME holds, for each case, `base`, `adapters` (checkpoints) and batch.safetensors. Outputs and loss in a layout
go to FOLDER/NAME/LAYOUT.safetensors, and the gradients of the adapters, as a checkpoint, to FOLDER/NAME/LAYOUT.
"""

import json
import sys
from pathlib import Path

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel.utils import is_pp_first_stage, is_pp_last_stage
from safetensors.torch import load_file, save_file

from megatron_chimed.convert.lora import Opened, open_checkpoint
from megatron_chimed.convert.model import build_part, gpt_config, load_opened
from megatron_chimed.models.lora import Adapter
from support.family_worker import Layout, add_gradients, outputs_of, save_gradients


def build(opened: Opened, layout: Layout, recompute: bool) -> DistributedDataParallel:
    """This rank's part with the weights of base and adapters, as the trainer wraps it."""
    changes = {"pipeline_model_parallel_size": layout.pp, "sequence_parallel": layout.sequence_parallel}
    changes |= {"calculate_per_token_loss": True, "variable_seq_lengths": False}
    if recompute:
        changes |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    config = gpt_config(opened.model, torch.float32, gather_logits=False, **changes)
    group = parallel_state.get_pipeline_model_parallel_group()
    ends = {"pre_process": is_pp_first_stage(group), "post_process": is_pp_last_stage(group)}
    part = build_part(opened.model, config, opened.lora.options, **ends)
    load_opened(part, opened)
    part.config.finalize_model_grads_func = finalize_model_grads
    return DistributedDataParallel(part.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), part)


def exchange(ddp) -> None:
    """The adapters of query and value in each other's place; their first A alone, if they differ in size."""
    for layer in ddp.module.adapters.values():
        one, other = layer["q_proj"], layer["v_proj"]
        one.A.data, other.A.data = other.A.data.clone(), one.A.data.clone()


def ignore_alpha(ddp) -> None:
    for adapter in ddp.module.modules():
        if isinstance(adapter, Adapter):
            adapter.scaling = 1.0


def leave_unreduced(ddp) -> None:
    for adapter in ddp.module.modules():
        if isinstance(adapter, Adapter) and not adapter.column:
            adapter._between = lambda hidden: hidden


CONTROLS = {"q and v exchanged": exchange, "alpha ignored": ignore_alpha, "row not reduced": leave_unreduced}


def answer(folder: Path, layout: Layout) -> None:
    """All that is asked of one case in one layout."""
    opened = open_checkpoint(folder / "adapters")
    batch, results = load_file(folder / "batch.safetensors"), {}
    for control, change in CONTROLS.items() if layout.name == "TP 2" else ():
        ddp = build(opened, layout, recompute=False)
        change(ddp)
        results[f"control: {control}"] = outputs_of(ddp, layout, opened.model, batch)["outputs"]
    ddp = build(opened, layout, recompute=layout.name == "PP 2")
    results |= outputs_of(ddp, layout, opened.model, batch)
    add_gradients(ddp, opened.model, batch)
    assert all(not hasattr(weight, "main_grad") for weight in ddp.module.parameters() if not weight.requires_grad)
    save_gradients(ddp.module, folder / layout.name, opened.source.args)
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        results = {name: tensor.contiguous() for name, tensor in results.items()}
        save_file(results, folder / f"{layout.name}.safetensors")


def main() -> None:
    """argv: FOLDER and the layouts as JSON."""
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for values in layouts:
        layout = Layout(**values)
        parallel_state.initialize_model_parallel(layout.tp, layout.pp)
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        for case in sorted(path.parent for path in folder.glob("*/batch.safetensors")):
            answer(case, layout)
        parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
