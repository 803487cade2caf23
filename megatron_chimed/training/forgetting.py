"""Watch what a training forgets: the loss of validation sets by name, row by row, before its first step and after.

The rows are read one at a time, without dropout and by no generator that the training draws from, so that their losses
are the same in every layout, and the training is the same with and without them. FOLDER/forgetting.json holds of each
set its loss before and after, the difference with an interval, and the sums of its rows that these follow from.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine
from megatron.core.utils import get_model_config
from megatron.training import get_args, training
from torch.utils.data import Dataset, default_collate

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import SCHEMA, read_json, write_json
from megatron_chimed.training.options import JobOptions
from megatron_chimed.training.runlog import log_rank0

FILE = "forgetting.json"
NORMAL_95 = 1.959964
"""The normal distribution's bounds of 95%."""


class Watch:
    """Looks at the named sets of one training. folder: its --save, or None; sets: gives them once they are built; log:
    the run's log."""

    def __init__(self, options: JobOptions, folder: str | None, sets: Callable[[], Mapping[str, Dataset]], log: Any):
        self.options, self.sets, self.log = options, sets, log
        self.path = Path(folder) / FILE if folder else None
        self.forward_step: Callable | None = None
        self.found: dict[str, dict[str, Any]] = {}
        """Of each set what forgetting.json says."""

    def begin(self, forward_step: Callable, model: list, iteration: int) -> None:
        """Measure the sets before the first step of the run; in a resumed one those that it did not have.

        iteration: the last that is done. Nothing at the later steps of a process. Raises InputError in a run that had
        to stop here and still has to.
        """
        if self.forward_step is not None:
            return
        self.forward_step = forward_step
        if not self.sets():
            return
        known, at = _read(self.path) if iteration and self.path else ({}, 0)
        kept = {name: known[name] for name in self.sets() if self._is_that(name, known.get(name))}
        if at == iteration and self.options.on_rise == "stop" and (risen := self._risen(kept)):
            raise InputError(f"{risen}; this is where the run has stopped")
        new = {name: row_losses(forward_step, model, rows) for name, rows in self.sets().items() if name not in kept}
        self.found = {name: kept.get(name) or self._entry(name, new[name], iteration) for name in self.sets()}
        if new:
            self._tell("valid", iteration, {name: self.found[name]["before"] for name in new})
            self._write(iteration)

    def look(self, model: list, optimizer: Any, iteration: int) -> str | None:
        """Measure the sets where an evaluation is due, and write them down. What is to be said when it must stop."""
        args = get_args()
        due = bool(args.eval_interval) and iteration % args.eval_interval == 0
        last = iteration >= args.train_iters
        if not self.found or not (due or last):
            return None
        # After the first step a forward pass may gather weights; as upstream around its evaluations.
        gathers = training.should_disable_forward_pre_hook(args) and len(model[0].remove_forward_pre_hook_handles) > 0
        if gathers:
            training.disable_forward_pre_hook(model, optimizer=optimizer)
        for name, rows in self.sets().items():
            self.found[name] |= compared(self.found[name], row_losses(self.forward_step, model, rows))
        if gathers:
            training.enable_forward_pre_hook(model)
        self._tell("valid" if due else "final_valid", iteration, {n: one["after"] for n, one in self.found.items()})
        self._write(iteration)
        if last:
            for name, one in self.found.items():
                log_rank0(f"valid set {line_of(name, one)}")
        risen = self._risen(self.found)
        if risen and self.options.on_rise == "stop":
            return f"iteration {iteration}: {risen}"
        if risen:
            log_rank0(f"warning: iteration {iteration}: {risen}")
        return None

    def _is_that(self, name: str, known: dict[str, Any] | None) -> bool:
        """Whether an entry is of the set that has this name now."""
        return known is not None and (known["data"], known["rows"]) == self._data(name)

    def _data(self, name: str) -> tuple[str, int]:
        return self.options.valid[name], len(self.sets()[name])

    def _entry(self, name: str, losses: np.ndarray, iteration: int) -> dict[str, Any]:
        """What is written of a set that is measured for the first time."""
        data, rows = self._data(name)
        sums, counts = losses.T
        entry = {"data": data, "rows": rows, "before_iteration": iteration}
        entry |= {"before": float(sums.sum() / counts.sum()), "counts": counts.tolist(), "sums_before": sums.tolist()}
        return entry | compared(entry, losses)

    def _risen(self, found: dict[str, dict[str, Any]]) -> str | None:
        """Which sets have risen by more than they may; None where none has."""
        limit = self.options.max_rise
        over = [line_of(name, one) for name, one in found.items() if one["difference"] > limit]
        if not limit or not over:
            return None
        return f"{'; '.join(over)}: more than max_rise {limit:g}; mix in replay, take a lower --lr, or raise max_rise"

    def _tell(self, split: str, iteration: int, losses: dict[str, float]) -> None:
        """Into the run's log."""
        self.log.evaluation(split, iteration, {f"lm loss {name}": value for name, value in losses.items()})

    def _write(self, iteration: int) -> None:
        """forgetting.json, by rank 0."""
        if self.path and torch.distributed.get_rank() == 0:
            write_json(self.path, {"schema": SCHEMA, "iteration": iteration, "sets": self.found})


def compared(entry: dict[str, Any], losses: np.ndarray) -> dict[str, Any]:
    """What a set's losses [rows, 2] of (sum, count) are after, beside those before: difference and interval.

    The difference is a ratio, (sum after - sum before) / tokens over all rows; its interval of 95% is the normal one of
    a ratio over rows that were drawn by chance (Cochran, Sampling Techniques, section 6.3), null for a single row.
    """
    sums, counts = losses.T
    change = sums - np.asarray(entry["sums_before"])
    difference = change.sum() / counts.sum()
    found = {"after": float(sums.sum() / counts.sum()), "difference": float(difference), "low": None, "high": None}
    if (rows := len(losses)) > 1:
        error = math.sqrt(rows / (rows - 1) * np.square(change - difference * counts).sum()) / counts.sum()
        found |= {"low": float(difference - NORMAL_95 * error), "high": float(difference + NORMAL_95 * error)}
    return found | {"sums_after": sums.tolist()}


def line_of(name: str, entry: dict[str, Any]) -> str:
    """A set before and after, in words."""
    interval = "" if entry["low"] is None else f" (95%: {entry['low']:+.4f} to {entry['high']:+.4f})"
    losses = f"lm loss {entry['before']:.4f} before, {entry['after']:.4f} after"
    return f"{name}: {losses}, {entry['difference']:+.4f}{interval} over {entry['rows']} rows"


def row_losses(forward_step: Callable, model: list, rows: Sequence) -> np.ndarray:
    """(sum of the NLL, number of target tokens) of each row, float64 [rows, 2], the same on all ranks.

    Each data-parallel rank takes every n-th row. Raises InputError when no row has a target token.
    """
    ranks, first = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
    mine = range(first, first + ranks * math.ceil(len(rows) / ranks), ranks)  # as many on each; the last may be no row
    batches = (default_collate([rows[min(number, len(rows) - 1)]]) for number in mine)
    reports = _forward(forward_step, model, batches, len(mine))
    found = torch.zeros(len(rows), 2, dtype=torch.double, device="cuda")
    if mpu.get_tensor_model_parallel_rank() == 0:  # of equal ones, one
        for number, report in zip(mine, reports, strict=False):  # the last pipeline stage alone has reports
            if number < len(rows):
                found[number] = report["lm loss"].view(-1).double()
    torch.distributed.all_reduce(found)
    losses = found.cpu().numpy()
    if not losses[:, 1].sum():
        raise InputError(f"valid: no token of a set of {len(rows)} rows is to be learnt; give other data")
    return losses


def _forward(forward_step: Callable, model: list, batches: Any, number: int) -> list[dict[str, torch.Tensor]]:
    """The reports of so many micro batches of one row, as upstream evaluates; model and settings are left as found."""
    args, config, rerun = get_args(), get_model_config(model[0]), get_rerun_state_machine()
    mode, timers = rerun.get_mode(), config.timers
    rerun.set_mode(RerunMode.DISABLED)
    config.timers = None
    for part in model:
        part.eval()
    try:
        with torch.no_grad():
            return get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=batches,
                model=model,
                num_microbatches=number,
                seq_length=args.seq_length,
                micro_batch_size=1,
                decoder_seq_length=args.decoder_seq_length,
                forward_only=True,
            )
    finally:
        for part in model:
            part.train()
        config.timers = timers
        rerun.set_mode(mode)


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(the sets of a forgetting.json, the iteration that it is of). Raises InputError when it is none."""
    if not path.is_file():
        return {}, 0
    content = read_json(path)
    try:
        for one in content["sets"].values():
            if not {"data", "rows", "before", "after", "difference", "low", "high", "sums_before"} <= one.keys():
                raise KeyError("sets")
        return content["sets"], content["iteration"]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: no record of the sets in valid; remove it to measure them anew") from None
