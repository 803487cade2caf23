"""What stages share between a batch of rows and the model: one packed row, and its tensors on the device."""

from megatron.core.packed_seq_params import PackedSeqParams

from megatron_chimed.errors import InputError
from megatron_chimed.models.branches import describe_row
from megatron_chimed.stages.stage import Batch, DataRequest


def on_device(batch: Batch, *, isolated: bool) -> tuple[Batch, PackedSeqParams | None]:
    """A batch [B, S] on the device. isolated: its rows joined to one packed row [1, B * S] with its description, so
    that attention stays inside of what its positions delimit (`describe_row`); else None."""
    packed = None
    if isolated:
        packed = describe_row(batch["position_ids"])
        batch = {name: tensor.view(1, -1) for name, tensor in batch.items()}
    return {name: tensor.cuda(non_blocking=True) for name, tensor in batch.items()}, packed


def refuse_joined_rows_in_a_pipeline(option: str, request: DataRequest) -> None:
    """Raise InputError when rows joined to one packed row would not fit between pipeline stages."""
    if request.pipeline_parallel_size > 1 and request.micro_batch_size > 1:
        raise InputError(
            f"{option} with --pipeline-model-parallel-size above 1 needs --micro-batch-size 1; raise "
            "--global-batch-size or --seq-length instead"
        )
