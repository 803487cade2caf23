"""Worker processes: how they behave, and a function over many jobs by several of them, in order.

Each worker starts afresh (spawn): nothing of the parent's threads or locks is copied into it, and what it needs, such
as a tokenizer, is sent to it once.
"""

import collections
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

_work: Callable[[Any], Any] | None = None  # of this worker process


def become_worker() -> None:
    """Set up a worker process: it leaves Ctrl-C to its parent, ends when its parent is gone, and uses one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # rows hold no cycles, and looking for them in hundred thousands of dicts takes time
    # The library's own threads would compete with the other workers, and must not be used after a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    become_worker()


def _run(job: Any) -> Any:
    return _work(job)


def map_in_order(work: Callable[[Any], Any], jobs: Iterable[Any], num_workers: int) -> Iterator[Any]:
    """Yield work(job) of each job, in their order. The number of jobs under way is bounded.

    work: a function or a callable object that can be pickled; num_workers: processes; 0 works in this one. Raises what
    `work` raises, and ChildProcessError when a worker is killed.
    """
    if num_workers == 0:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start, (work,)) as pool:
        under_way: collections.deque = collections.deque()
        try:
            for job in jobs:
                under_way.append(pool.submit(_run, job))
                if len(under_way) > 3 * num_workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed (as a rule for lack of memory); run the same command again, "
                "with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
