"""Measurements in processes of their own: started, ended in time, and tried with fewer layers where memory ends.

On a GPU a process starts anew, since CUDA does not outlive a fork. On a CPU it is forked from one that has imported the
libraries: the twin then takes half a minute, not two.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import one_way

from megatron_chimed.inference.processes import last_words
from megatron_chimed.jsonl import read_json

PATIENCE = 5
"""Seconds in which what is late ends by itself; then it is killed."""

Run = Callable[[str, dict[str, Any], Path, float], dict[str, Any]]


def context(device: str) -> multiprocessing.context.BaseContext:
    """How children start."""
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["preloaded_libraries"])
    return made


def run(way: str, given: dict[str, Any], folder: Path, limit: float) -> dict[str, Any]:
    """What a way has written within so many seconds; with "left_out", the reason, where it did not come to its end. All
    that it says is in FOLDER/WAY.log."""
    path, log = folder / f"{way}.json", folder / f"{way}.log"
    for old in (path, log):
        old.unlink(missing_ok=True)
    child = context(given["device"]).Process(target=one_way.enter, args=(way, given, str(path), str(log)))
    child.start()
    child.join(limit)
    late = child.exitcode is None
    if late:  # a test ends what it has started, in sessions of their own, when it is interrupted
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGINT)
        child.join(PATIENCE)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, with all that it had started
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()
    found = read_json(path) if path.exists() else {}
    if late:
        return found | {"left_out": f"not done in its share of the time, {limit:.0f} s"}
    if child.exitcode == one_way.OUT_OF_MEMORY:
        return found | {"left_out": one_way.NO_MEMORY}
    if child.exitcode:
        said = last_words(log, f"ended with code {child.exitcode}") if log.exists() else "did not start"
        return found | {"left_out": one_way.NO_MEMORY if "OutOfMemoryError" in said else said}
    return found


def with_fewer_layers(way: str, given: dict[str, Any], folder: Path, limit: float, start: Run = run) -> dict[str, Any]:
    """The same, with the number of layers that fitted: an eighth less, one at least, as often as memory ends."""
    end, layers = time.monotonic() + limit, given["layers"]
    while True:
        found = start(way, given | {"layers": layers}, folder, end - time.monotonic())
        if found.get("left_out") != one_way.NO_MEMORY or layers == 1:
            return {"layers": layers} | found
        layers -= max(1, layers // 8)
