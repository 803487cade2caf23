"""Checkpoints that are whole or not there: a manifest written last, no half-written folder left, the last k kept.

Together with trainer.py, patches.py and supervision.py the only importer of megatron.training.
"""

import functools
import queue
import re
import shutil
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.training import checkpointing, get_args, training
from torch.distributed.checkpoint import CheckpointException

from megatron_chimed import checkpoints
from megatron_chimed.errors import InputError, LostRank

FULL = re.compile(r"No space left|File too large|quota exceeded|Input/output error|PytorchStreamWriter|OSError", re.I)
"""What a disk says, or what upstream passes on of it."""


def install(keep: int, *, in_background: bool) -> None:
    """Put the manifest, the cleaning up and the retention of the `keep` newest into the trainer. in_background:
    --async-save."""
    if not in_background:
        _save_without_another_process()
    _save_with_manifest()
    _keep_the_newest(keep)


def _save_without_another_process() -> None:
    """Upstream collects what its writing threads say through a process of its own on each rank (300 MB), which a
    signal to all processes of a job ends, and with it the save, and which outlives a rank that is killed."""
    filesystem_async._results_queue = queue.Queue()


def _save_with_manifest() -> None:
    """Upstream's --verify-integrity reads all files on rank 0, one after the other; here each rank hashes its own. It
    overwrites what a cut-off save has left file by file, so that other files stay; and it leaves what it could not
    write to the end. The tracker is written after the manifest."""
    original = checkpointing.dist_checkpointing.save

    @functools.wraps(original)
    def save(state, checkpoint_dir, *args, **kwargs):
        folder = Path(checkpoint_dir)
        _empty(folder)
        try:
            request = original(state, checkpoint_dir, *args, **kwargs)
            finish = functools.partial(_write_manifest, folder)
            if request is None:
                finish()
            else:
                request.finalize_fns.append(finish)  # of a save in the background
        except (Exception, CheckpointException) as error:  # which is no Exception
            known = _explain(folder, error)
            checkpoints.discard(folder)
            if known:
                raise known from None
            raise
        return request

    checkpointing.dist_checkpointing.save = save


def _empty(folder: Path) -> None:
    """Remove what a save that was cut off has left under this name."""
    if torch.distributed.get_rank() == 0:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    torch.distributed.barrier()


def _write_manifest(folder: Path) -> None:
    """Hash this rank's files on each rank and write all of it on rank 0, which also hashes files that no rank wrote."""
    rank = torch.distributed.get_rank()
    mine = checkpoints.hash_files(folder, [path.name for path in folder.glob(f"__{rank}_*")])
    parts = [{}] * torch.distributed.get_world_size() if rank == 0 else None
    torch.distributed.gather_object(mine, parts)
    if rank == 0:
        files = functools.reduce(dict.__or__, parts)
        others = {path.name for path in folder.iterdir() if path.is_file()} - {*files, checkpoints.MANIFEST}
        checkpoints.write_manifest(folder, files | checkpoints.hash_files(folder, others))


def _explain(folder: Path, error: Exception) -> InputError | None:
    """What the disk has said, in one line; None when the fault is another one."""
    if isinstance(error, CheckpointException) and not error.failures:
        return LostRank(f"{folder}: another rank could not write its part")
    found = FULL.search(str(error))
    if found is None:
        return None
    free = shutil.disk_usage(folder.parent).free / 1e9
    latest = checkpoints.latest_iteration(folder.parent)
    return InputError(
        f"{folder}: the checkpoint could not be written ({found.group()}); is the disk full? {free:.3g} GB are free. "
        f"What was written of it is removed, the newest checkpoint is that of iteration {latest}; make space and run "
        "the same command again"
    )


def _keep_the_newest(keep: int) -> None:
    """Delete older checkpoints when a new one is whole and the tracker names it. Upstream's --save-retain-interval
    deletes the one before, whole or not."""
    original = training.save_checkpoint

    @functools.wraps(original)
    def save_checkpoint(*args, **kwargs):
        original(*args, **kwargs)
        settings = get_args()
        if torch.distributed.get_rank() == 0:
            checkpoints.retain(settings.save, keep, settings.save_retain_interval)

    training.save_checkpoint = save_checkpoint
