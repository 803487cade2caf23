"""Stop a training on a signal or the rise of a named set's loss, with a checkpoint; on a diverged loss, with its batch.

All ranks agree in each iteration, by one small all-reduce, taken when the gradients are there and the weights are not
yet changed.
"""

import contextlib
import functools
import json
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.training import checkpointing, get_args, training

from megatron_chimed import checkpoints
from megatron_chimed.errors import STOP_SIGNALS, STOPPED, InputError, LostRank
from megatron_chimed.jsonl import atomic_output
from megatron_chimed.training.forgetting import Watch
from megatron_chimed.training.loss_spike import LossSpikeDetector
from megatron_chimed.training.options import JobOptions
from megatron_chimed.training.runlog import log_rank0

SHOWN = 8  # rows of a source in a message; all of them are in the file


class Supervisor:
    """Watches one training. train_data: gives the dataset that is trained on, once the first step has begun; watch:
    looks at the validation sets by name."""

    def __init__(self, options: JobOptions, train_data: Callable[[], Any], watch: Watch):
        self.train_data, self.watch = train_data, watch
        self.detector = LossSpikeDetector(options.loss_limit, options.loss_limit_iterations)
        self.listening = False
        self.signalled = False  # this rank
        self.stopping = False  # all ranks, agreed
        self.stopped = False
        self.risen: str | None = None  # why the loss of a named set ends the training

    def install(self) -> None:
        """Put itself into the trainer. Once per process, before `pretrain`."""
        train_step, decide = training.train_step, training.checkpoint_and_decide_exit

        @functools.wraps(train_step)
        def step(forward_step, iterator, model, optimizer, scheduler, config, forward_backward, *args, **kwargs):
            def watched(*a, **k):
                losses = forward_backward(*a, **k)
                self._agree(losses, model, kwargs["iteration"] + 1)
                return losses

            self._listen()
            self.watch.begin(forward_step, model, kwargs["iteration"])
            return train_step(forward_step, iterator, model, optimizer, scheduler, config, watched, *args, **kwargs)

        @functools.wraps(decide)
        def save_or_decide(model, optimizer, scheduler, iteration, *args):
            self.risen = self.watch.look(model, optimizer, iteration)
            if self.risen:
                where = self._save(model, optimizer, scheduler, iteration, *args)
                self.risen = f"{self.risen}; {where}"
                return True
            if self.stopping and iteration < get_args().train_iters:
                where = self._save(model, optimizer, scheduler, iteration, *args)
                self.stopped = True
                more = "; the same command continues" if get_args().save else ""
                log_rank0(f"stopped by a signal after iteration {iteration}: {where}{more}")
                return True
            return decide(model, optimizer, scheduler, iteration, *args)

        training.train_step, training.checkpoint_and_decide_exit = step, save_or_decide

    @contextlib.contextmanager
    def running(self, explain: Callable[[Exception], InputError | None]) -> Iterator[None]:
        """Around the trainer. Raises InputError for what the user can mend, by `explain`, and SystemExit when the
        trainer is to end before its last iteration."""
        try:
            yield
        except (AssertionError, RuntimeError, IndexError, OSError) as error:
            known = explain(error)
            if known is None:
                raise
            if isinstance(known, LostRank) and self.signalled:
                sys.exit(1)  # the launcher ends this job; the rank that lost its peers first has printed the reason
            raise known from None
        except SystemExit as end:
            if self.risen:
                raise InputError(self.risen) from None
            sys.exit(STOPPED if self.stopped else end.code)

    def _listen(self) -> None:
        """Note signals from now on. Before the first step they end the process: there is nothing new to save."""
        if not self.listening:
            self.listening = True
            for number in STOP_SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.signalled = True

    def _agree(self, losses: list[dict[str, torch.Tensor]], model: list, iteration: int) -> None:
        """Sum over all ranks: signals, gradients that are no numbers, and the losses, each [sum, count].

        Raises InputError on every rank when the training must not go on.
        """
        if get_args().fake_process_group:
            return  # a dry run's collectives leave what was in memory
        parts = [next(iter(figures.values())).double().view(-1) for figures in losses if figures]
        total, count = torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.double)
        for part in parts:
            total = total + part[0].cpu()
            count = count + (part[1].cpu() if part.numel() == 2 else 1)
        lost = 0.0 if get_args().fp16 else float(not are_finite(model))  # loss scaling expects infinite gradients
        summed = torch.tensor([float(self.signalled), lost, total, count], dtype=torch.double, device="cuda")
        torch.distributed.all_reduce(summed)
        signals, lost, total, count = summed.tolist()
        self.stopping = signals > 0
        reason = self.detector.update(total / count) if count else None
        if reason is None and lost:
            reason = "a gradient is not a finite number"
        if reason is not None:
            self._give_up(reason, model, iteration)

    def _save(self, model, optimizer, scheduler, iteration, num_operations, context, iterator) -> str:
        """Save before the trainer ends; what there is to say of it."""
        saved = get_args().save
        if saved:
            training.save_checkpoint_and_time(
                iteration, model, optimizer, scheduler, num_operations, context, train_data_iterator=iterator
            )
        return f"saved in {saved}" if saved else "nothing is saved, as there is no --save"

    def _give_up(self, reason: str, model: list, iteration: int) -> None:
        """Save the weights that this iteration began with and its batch, and raise InputError with all of it."""
        args = get_args()
        batch = range(args.consumed_train_samples, args.consumed_train_samples + args.global_batch_size)
        rows = _rows(self.train_data(), batch)
        text = f"iteration {iteration}: {reason}; its batch: {_short(rows)}"
        if not args.save:
            raise InputError(f"{text}. There is no --save to put weights and batch into")
        folder = Path(args.save) / f"stopped_at_{iteration:07d}"
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _write_batch(folder, self.train_data(), batch, {"iteration": iteration, "reason": reason, "rows": rows})
        torch.distributed.barrier()
        _save_weights(folder, model, iteration - 1)
        raise InputError(
            f"{text}. The weights before it and the batch are in {folder}; the newest checkpoint is that of iteration "
            f"{checkpoints.latest_iteration(args.save)}"
        )


def are_finite(model: list) -> bool:
    """Whether all of this rank's gradients are finite numbers, in the buffers of Megatron's data-parallel wrappers."""
    for part in model:
        for buffer in [*getattr(part, "buffers", []), *getattr(part, "expert_parallel_buffers", [])]:
            # On a CPU the largest takes 25 times as long as the norm, whose squares may overflow.
            norms = (torch.linalg.vector_norm(buffer.grad_data, ord=order) for order in (2, torch.inf))
            if not any(torch.isfinite(norm) for norm in norms):
                return False
    return True


def _rows(dataset: Any, batch: range) -> dict[str, list[int]]:
    """{path of a source: its rows} of samples of a run, in their order."""
    rows = defaultdict(list)
    for sample in batch:
        path, row = dataset.place(sample)
        rows[str(path)].append(row)
    return dict(rows)


def _short(rows: dict[str, list[int]]) -> str:
    """Rows for a message."""
    parts = []
    for path, numbers in rows.items():
        more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
        parts.append(f"{path} rows {', '.join(map(str, numbers[:SHOWN]))}{more}")
    return "; ".join(parts)


def _write_batch(folder: Path, dataset: Any, batch: range, facts: dict[str, Any]) -> None:
    """batch.json with the facts, and batch.npz with the samples' arrays [samples, tokens], as plain arrays."""
    with atomic_output(folder / "batch.json") as file:
        json.dump(facts, file, ensure_ascii=False)
    samples = [dataset[number] for number in batch]
    arrays = {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in samples[0]}
    with atomic_output(folder / "batch.npz", "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _save_weights(folder: Path, model: list, iteration: int) -> None:
    """The weights alone, as a run's folder of its own that every tool for checkpoints takes."""
    args = get_args()
    changed = {"save": str(folder), "no_save_optim": True, "async_save": False, "save_retain_interval": None}
    before = {name: getattr(args, name) for name in changed}
    vars(args).update(changed)
    try:
        checkpointing.save_checkpoint(iteration, model, None, None, 0)
    finally:
        vars(args).update(before)
