"""Worker processes that do pieces of work while the results come back in the order of the pieces."""

import collections
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from tqdm import tqdm

_work: Callable | None = None  # what this worker process does


class Bar(tqdm):
    """A progress bar without a thread of its own, as worker processes are forked while it is shown."""

    monitor_interval = 0


def _start_worker(work: Callable) -> None:
    """Set up a worker process: it leaves Ctrl-C to its parent and ends when its parent is gone."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # rows hold no cycles, and looking for them in hundred thousands of dicts takes time
    # The library's own threads would compete with the other workers, and must not be used after a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of one batch for the next: handing it back and faulting it in again costs a tenth of
    the time. Forked workers inherit the setting; other C libraries have none."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: never trim, no mapping of its own
            libc.mallopt(parameter, 1 << 30)


def _do(arguments: tuple) -> Any:
    return _work(*arguments)


def map_in_order[K](
    work: Callable, jobs: Iterable[tuple[K, tuple | None]], num_workers: int
) -> Iterator[tuple[K, Any]]:
    """Call work(*arguments) for each (key, arguments); yield (key, result) in the same order, as they are there.

    num_workers: processes; 0 works in this one. They are forked, and so inherit `work` with all that it holds.
    arguments None: nothing is to be done, the result is None. The number of jobs under way is bounded. Raises
    ChildProcessError when a worker dies.
    """
    if num_workers == 0:
        for key, arguments in jobs:
            yield key, None if arguments is None else work(*arguments)
        return
    _keep_freed_memory()
    context = multiprocessing.get_context("fork")  # inherits the loaded tokenizer; starting anew costs a second
    with ProcessPoolExecutor(num_workers, context, _start_worker, (work,)) as pool:
        under_way: collections.deque = collections.deque()
        try:
            for key, arguments in jobs:
                under_way.append((key, None if arguments is None else pool.submit(_do, arguments)))
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


def _wait_for(key: Any, future: Any) -> tuple[Any, Any]:
    return key, None if future is None else future.result()


def count_cores(environment: Mapping[str, str] = os.environ) -> int:
    """The cores that are ours: those that this process may run on, and no more than Slurm gave the task or the job."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = environment.get("SLURM_CPUS_PER_TASK") or environment.get("SLURM_CPUS_ON_NODE") or ""
    return min(cores, int(given)) if given.isdecimal() and int(given) else cores
