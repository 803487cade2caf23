"""What is settled once for a whole job, before its ranks start: who may write --save, and which checkpoint is whole.

``python -m megatron_chimed.training.job STAGE MODEL.yaml STAGE.yaml ...`` ends with 0 when nothing is left to train.
"""

import sys
from pathlib import Path
from typing import Any

from megatron_chimed import checkpoints
from megatron_chimed.config import load_settings
from megatron_chimed.errors import InputError
from megatron_chimed.stages.schedule import planned_iterations
from megatron_chimed.steps import lock_folder
from megatron_chimed.training import slurm
from megatron_chimed.training.tokenizers import check_tokenizers


def prepare(argv: list[str]) -> int | None:
    """Lock --save and see that the checkpoint that will be loaded is whole; on the first machine, before the ranks.

    argv: ``[stage, model YAML, stage YAML, overrides ...]``. A damaged checkpoint in --save is set aside with a
    warning, and the one before it is the latest then; of --load it is refused, and so are data of another tokenizer,
    and a Slurm job that starts again and again and gets nowhere.
    Returns the lock's handle, to be kept as long as the job runs; None without --save. Raises InputError. What else is
    wrong with the argv the ranks say.
    """
    try:
        whole = load_settings(argv[1], argv[2], argv[3:])
    except (InputError, IndexError):
        return None
    check_tokenizers(whole)
    settings = whole.megatron
    save, load = _path(settings, "save"), _path(settings, "load")
    if load is not None and load != save and not (save and checkpoints.latest_iteration(save)):
        for folder in filter(None, checkpoints.split_adapter(load)):
            _check_load(folder)
    if save is None:
        return None
    try:
        handle = lock_folder(save, "--save")
        if warning := checkpoints.fall_back(save):
            print(f"megatron_chimed: warning: {warning}", file=sys.stderr, flush=True)
        slurm.note_start(save)
    except OSError as error:
        raise InputError(f"--save {save}: cannot be written ({error.strerror}); name another folder") from None
    return handle


def is_trained(argv: list[str]) -> str | None:
    """What to say of a run that has all its iterations already, so that no rank has to start; None for any other."""
    try:
        settings = load_settings(argv[1], argv[2], argv[3:])
        save = _path(settings.megatron, "save")
        done = checkpoints.latest_iteration(save) if save else 0
        if not done or done < planned_iterations(argv[0], settings):
            return None
    except (InputError, IndexError):  # the ranks say what is wrong
        return None
    return trained_line(save, done)


def trained_line(save: str | Path, iteration: int) -> str:
    """What is said of a run that is at its end."""
    return f"{save} is trained to iteration {iteration}; raise --train-iters to continue"


def _path(settings: dict[str, Any], key: str) -> Path | None:
    """The folder that a setting names."""
    return Path(str(settings[key].value)) if key in settings else None


def _check_load(folder: Path) -> None:
    """Raise InputError when the newest checkpoint of another run is damaged. The folder is not ours to mend."""
    if latest := checkpoints.latest_iteration(folder):
        checkpoints.check_whole(checkpoints.path_of(folder, latest))


if __name__ == "__main__":
    if not (line := is_trained(sys.argv[1:])):
        sys.exit(1)
    print(f"megatron_chimed: {line}")
