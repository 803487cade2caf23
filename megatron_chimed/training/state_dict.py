"""Compare the names of a checkpoint's weights with the model's, both ways; upstream loads what fits."""

from argparse import Namespace
from pathlib import Path

import torch
from megatron.core.dist_checkpointing import ShardedTensor, load_tensors_metadata
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

from megatron_chimed.convert.strict import OPTIMIZER
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError


def check_state_dict(
    folder: str | None, model: list[torch.nn.Module], missing_keys: tuple[str, ...], unexpected_keys: tuple[str, ...]
) -> bool:
    """Whether `missing_keys` are to be initialized: the model has these weights, and the checkpoint has none.

    folder: of one iteration; without a checkpoint in torch_dist format nothing is compared. missing_keys: weights that
    another stage's checkpoint may lack, () if none; unexpected_keys: weights of such a checkpoint that may then be left
    aside. Call it on all ranks. Raises InputError listing what is missing and what nobody wants.
    """
    if folder is None or not (Path(folder) / ".metadata").is_file():
        return False
    stored = {name for name in load_tensors_metadata(str(folder)) if not OPTIMIZER.match(name)}
    wanted = _wanted(model)
    missing, extra = wanted - stored, stored - wanted
    if missing_keys and missing == set(missing_keys) and extra <= set(unexpected_keys):
        return True
    if any(name.startswith("adapters.") for name in extra) and not any(name.startswith("adapters.") for name in wanted):
        raise InputError(
            f"{folder}: holds LoRA's adapters, no whole model; give their lora: in the chimed: block, or start from "
            "the merged model (chimed convert megatron-to-hf --merge, then hf-to-megatron)"
        )
    if missing or extra:
        raise InputError(
            f"{folder}: holds another model: missing {', '.join(sorted(missing)) or 'nothing'}; "
            f"unused {', '.join(sorted(extra)) or 'nothing'}; give a checkpoint of this stage and model, or with "
            "--finetune one of the stage before"
        )
    return False


def check_expert_layout(folder: str | None, args: Namespace) -> None:
    """Raise InputError when a run with experts is to be continued with them spread otherwise over the ranks.

    The optimizer's state of experts that other ranks have has names of its own, which upstream does not find then.
    """
    if not args.num_experts or args.finetune or args.no_load_optim or folder is None:
        return
    if not (Path(folder) / ".metadata").is_file():
        return
    saved = TorchDistCheckpoint(folder).args
    for name in ("expert_model_parallel_size", "expert_tensor_parallel_size"):
        before, now = getattr(saved, name, None), getattr(args, name)
        if before not in (now, None):
            raise InputError(
                f"{folder}: saved with --{name.replace('_', '-')} {before}, now {now}; keep it, or start a new --save "
                "from it with --load and --finetune"
            )


def _wanted(model: list[torch.nn.Module]) -> set[str]:
    """Names that the weights of the model have in a checkpoint, on all ranks together."""
    parts = [part for module in model for part in module.sharded_state_dict().values()]
    here = {part.key for part in parts if isinstance(part, ShardedTensor | ShardedTensorFactory)}
    everywhere = [here]
    if torch.distributed.is_initialized():
        everywhere = [set()] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, here)
    return set().union(*everywhere)
