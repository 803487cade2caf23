"""Workers that do pieces of work while the results come back in the order of the pieces: processes, or a Ray cluster.

What comes back, and in which order, does not depend on who did it.
"""

import argparse
import collections
import contextlib
import ctypes
import functools
import gc
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from tqdm import tqdm

from megatron_chimed.errors import InputError

Workers = int | str
"""How many processes, 0 for none but this one; or ``ray``, the cluster of this machine, or ``ray:ADDRESS``."""

COLUMNS = 100
"""How wide what is shown is at most, where nothing says how wide the terminal is."""

RAY = "ray"
CONNECT_SECONDS = 10
RETRIES = 5
"""How often Ray does a piece of work again whose node or process is lost."""

_work: Callable | None = None  # what this worker process does
_sent: Any = None  # the reference by which a process of a cluster was sent it


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    text = "processes (the number of cores); or ray, or ray:ADDRESS: a cluster whose nodes see the same files"
    parser.add_argument("--workers", type=_workers_of, metavar="N|ray", default=count_cores(), help=text)


def _workers_of(text: str) -> Workers:
    """Read the value of --workers. Raises ValueError, as argparse wants it."""
    return text if text.split(":")[0] == RAY else int(text)


def check_workers(workers: Workers) -> None:
    """Raise InputError for what is neither 0 or more nor a Ray cluster."""
    known = workers == RAY or workers.startswith(f"{RAY}:") if isinstance(workers, str) else workers >= 0
    if not known:
        raise InputError(f"--workers {workers}: expected 0 or more processes, or ray, or ray:ADDRESS")


class Bar(tqdm):
    """A progress bar without a thread of its own, as worker processes are forked while it is shown.

    It is as wide as the terminal; in a file, COLUMNS.
    """

    monitor_interval = 0

    def __init__(self, *arguments: Any, **settings: Any):
        if not sys.stderr.isatty():
            settings |= {"ncols": COLUMNS, "dynamic_ncols": False}
        super().__init__(*arguments, **settings)


def in_columns(pieces: Iterable[str], indent: int = 4) -> str:
    """Pieces with a space between, in lines of COLUMNS at most, of which all but the first are indented. No piece is
    broken, however long."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + 1 + len(piece) <= COLUMNS:
            lines[-1] += f" {piece}"
        else:
            lines.append((" " * indent if lines else "") + piece)
    return "\n".join(lines)


def _start_worker(work: Callable) -> None:
    """Set up a worker process: it leaves Ctrl-C to its parent and ends when its parent is gone."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # rows hold no cycles, and looking for them in hundred thousands of dicts takes time
    _use_one_thread()
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _use_one_thread() -> None:
    """Let tokenizers start no threads: they would compete with other workers, and are lost in a fork."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


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
    work: Callable, jobs: Iterable[tuple[K, tuple | None]], workers: Workers
) -> Iterator[tuple[K, Any]]:
    """Call work(*arguments) for each (key, arguments); yield (key, result) in the same order, as they are there.

    Processes are forked, and so inherit `work` with all that it holds; to each process of a cluster it is sent once.
    arguments None: nothing is to be done, the result is None. The number of jobs under way is bounded. Raises
    ChildProcessError when a worker dies, in a cluster when it does again and again; InputError where no cluster is.
    """
    check_workers(workers)
    if isinstance(workers, str):
        yield from _map_on_ray(work, jobs, workers.partition(":")[2] or "auto")
    elif workers:
        yield from _map_in_processes(work, jobs, workers)
    else:
        for key, arguments in jobs:
            yield key, None if arguments is None else work(*arguments)


def _in_order[K](
    jobs: Iterable[tuple[K, tuple | None]], submit: Callable[[tuple], Any], result: Callable[[Any], Any], most: int
) -> Iterator[tuple[K, Any]]:
    """Keep at most `most` jobs under way, and yield what comes of them in their order."""
    under_way: collections.deque = collections.deque()
    for key, arguments in jobs:
        under_way.append((key, None if arguments is None else submit(arguments)))
        if len(under_way) > most:
            key, job = under_way.popleft()
            yield key, None if job is None else result(job)
    for key, job in under_way:
        yield key, None if job is None else result(job)


def _map_in_processes[K](
    work: Callable, jobs: Iterable[tuple[K, tuple | None]], num_workers: int
) -> Iterator[tuple[K, Any]]:
    """`map_in_order` with processes of this machine."""
    _keep_freed_memory()
    context = multiprocessing.get_context("fork")  # inherits the loaded tokenizer; starting anew costs a second
    with ProcessPoolExecutor(num_workers, context, _start_worker, (work,)) as pool:
        try:
            yield from _in_order(jobs, functools.partial(pool.submit, _do), lambda job: job.result(), 3 * num_workers)
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed (as a rule for lack of memory); what is finished is kept: "
                "run the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _map_on_ray[K](work: Callable, jobs: Iterable[tuple[K, tuple | None]], address: str) -> Iterator[tuple[K, Any]]:
    """`map_in_order` with a Ray cluster that runs already."""
    ray = _connect(address)
    try:
        sent = ray.put(work)
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_do_on_ray)
        most = 3 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        # In a list a reference is handed on as such: a process takes what it stands for once, and not for each job.
        context = [sent, os.getcwd()]
        yield from _in_order(jobs, lambda arguments: task.remote(context, arguments), ray.get, most)
    except ray.exceptions.RayTaskError as error:
        lost = re.findall(r"No module named '([\w.]+)'", str(error))
        if lost:
            raise InputError(
                f"--workers ray: a node's Python has no {lost[-1]}; install this package on each"
            ) from None
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ChildProcessError(
            f"the Ray cluster lost a piece of work {RETRIES + 1} times, or is gone ({reason}); what is finished is "
            "kept: run the same command again"
        ) from None
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    """Join a Ray cluster; returns the package. Raises InputError."""
    try:
        import ray
    except ImportError:
        raise InputError("--workers ray: Ray is not installed; pip install ray, or give a number") from None
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit():  # where nothing listens Ray waits for minutes
            socket.create_connection((host.rpartition("/")[2], int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        where = "no cluster runs on this machine" if address == "auto" else f"no cluster answers at {address}"
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--workers ray: {where} ({reason}); start one with `ray start --head`, or give a number of processes"
        ) from None
    return ray


def _do_on_ray(context: list, arguments: tuple) -> Any:
    """Do a piece of work in a process of a cluster, which keeps what it does and stays where the caller is."""
    global _work, _sent
    sent, folder = context
    if _sent != sent:
        import ray

        try:
            os.chdir(folder)  # paths may be relative
        except OSError as error:
            node = ray.util.get_node_ip_address()
            raise InputError(
                f"{folder}: {error.strerror} on the node {node}; the nodes must see the same files"
            ) from None
        _use_one_thread()
        _work, _sent = ray.get(sent), sent
    return _work(*arguments)


def count_cores(environment: Mapping[str, str] = os.environ) -> int:
    """The cores that are ours: those that this process may run on, and no more than Slurm gave the task or the job."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = environment.get("SLURM_CPUS_PER_TASK") or environment.get("SLURM_CPUS_ON_NODE") or ""
    return min(cores, int(given)) if given.isdecimal() and int(given) else cores
