"""Worker processes of the corpus builder.

They write their parts as files and return nothing: token ids never pass between processes as Python objects, which
would cost more than the tokenisation itself.
"""

import collections
import contextlib
import ctypes
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from megatron_chimed.data.corpus_input import Batch
from megatron_chimed.data.corpus_worker import Worker
from megatron_chimed.workers import become_worker

_worker: Worker | None = None  # of this worker process


def _start_worker(worker: Worker) -> None:
    """Set up a worker process."""
    global _worker
    _worker = worker
    become_worker()


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of one batch for the next: handing it back and faulting it in again costs a tenth of
    the time. Forked workers inherit the setting; other C libraries have none."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: never trim, no mapping of its own
            libc.mallopt(parameter, 1 << 30)


def _make_part(batch: Batch, path: Path) -> None:
    _worker.make_part(batch, path)


def make_parts(
    jobs: Iterable[tuple[Batch, Path, bool]], worker: Worker, num_workers: int
) -> Iterator[tuple[Batch, Path]]:
    """Make the part of each (batch, path, wanted); yield (batch, path) in the same order, as they are there.

    num_workers: processes; 0 works in this one. wanted: false for a part that is there already. The number of jobs
    under way is bounded. Raises ChildProcessError when a worker dies.
    """
    if num_workers == 0:
        for batch, path, wanted in jobs:
            if wanted:
                worker.make_part(batch, path)
            yield batch, path
        return
    _keep_freed_memory()
    context = multiprocessing.get_context("fork")  # inherits the loaded tokenizer; starting anew costs a second
    with ProcessPoolExecutor(num_workers, context, _start_worker, (worker,)) as pool:
        under_way: collections.deque = collections.deque()
        try:
            for batch, path, wanted in jobs:
                under_way.append((batch, path, pool.submit(_make_part, batch, path) if wanted else None))
                if len(under_way) > 3 * num_workers:
                    yield _wait_for(*under_way.popleft())
            while under_way:
                yield _wait_for(*under_way.popleft())
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed (as a rule for lack of memory); what is finished is kept: "
                "run the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(batch: Batch, path: Path, future) -> tuple[Batch, Path]:
    if future is not None:
        future.result()
    return batch, path
