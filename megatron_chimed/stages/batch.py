"""What stages share between a batch of rows and the model: one packed row, and its tensors on the device."""

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_chimed.datasets.rows import cu_seqlens_from_positions
from megatron_chimed.errors import InputError
from megatron_chimed.stages.stage import Batch, DataRequest


def packed_parameters(position_ids: torch.Tensor) -> PackedSeqParams:
    """Positions [B, S] that restart at 0 with each document -> Megatron's description of one packed row [1, B * S]."""
    boundaries = torch.from_numpy(cu_seqlens_from_positions(position_ids.numpy()))
    longest = int(boundaries.diff().max())
    boundaries = boundaries.cuda(non_blocking=True)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def on_device(batch: Batch, *, isolated: bool) -> tuple[Batch, PackedSeqParams | None]:
    """A batch [B, S] on the device. isolated: its rows joined to one packed row [1, B * S] with its description, so
    that attention stays inside of what its positions delimit; else None."""
    packed = None
    if isolated:
        packed = packed_parameters(batch["position_ids"])
        batch = {name: tensor.view(1, -1) for name, tensor in batch.items()}
    return {name: tensor.cuda(non_blocking=True) for name, tensor in batch.items()}, packed


def refuse_joined_rows_in_a_pipeline(option: str, request: DataRequest) -> None:
    """Raise InputError when rows joined to one packed row would not fit between pipeline stages."""
    if request.pipeline_parallel_size > 1 and request.micro_batch_size > 1:
        raise InputError(
            f"{option} with --pipeline-model-parallel-size above 1 needs --micro-batch-size 1; raise "
            "--global-batch-size or --seq-length instead"
        )
