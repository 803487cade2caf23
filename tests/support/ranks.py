"""Ranks of a training without the launcher: forked from a process that has imported torch and Megatron already.

A rank so costs its training alone, and not four seconds of imports before. What torchrun does for it is done here: its
number and address in the environment, and when one rank fails the others are ended. Tests of the launcher itself, and
all that a user starts, go through launch/torchrun.sh.
"""

import contextlib
import importlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from support.paths import TESTS

WITHOUT = "TESTS_WITHOUT_PATCHES"
"""The variable that names functions, ``module:function``, which ranks leave out; with ``@1`` rank 1 alone."""
ON_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "PYTHONWARNINGS": "ignore",
}


class Started:
    """A job under way, with what its users need of subprocess.Popen. Its processes are a session of their own."""

    def __init__(self, process):
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("ranks", timeout)
        return self._process.exitcode


TRAINING = "megatron_chimed.training.rank"


def start(words: list[str], ranks: int, output: Path, module: str = TRAINING) -> Started:
    """Start ``python -m megatron_chimed.training.rank WORDS`` as so many ranks on the CPU, output added to a file.

    module: another one with a `main`, which reads its words from sys.argv.
    """
    with fork_server() as context:
        words = [str(word) for word in words]
        process = context.Process(target=_lead, args=(module, words, dict(os.environ), ranks, output))
        process.start()
    return Started(process)


@contextlib.contextmanager
def fork_server() -> Iterator[multiprocessing.context.BaseContext]:
    """The process that has imported torch and Megatron: what is started here is forked from it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preloaded"])
    path = {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    with mock.patch.dict(os.environ, ON_CPU | path):  # the environment of the first start is that of the imports
        multiprocessing.forkserver.ensure_running()
        yield context


def _lead(module: str, words: list[str], environment: dict[str, str], ranks: int, output: Path) -> None:
    """Fork the ranks; exit with the code of the first that fails, or 0."""
    os.setsid()
    os.environ.clear()  # what the first start had set is not of this one
    os.environ.update(environment)
    os.chdir(TESTS.parent)
    with open(output, "ab") as said, open(os.devnull, "rb") as nothing:
        for number, file in enumerate((nothing, said, said)):
            os.dup2(file.fileno(), number)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    others, code = set(), 0
    for rank in range(ranks):
        if (process := os.fork()) == 0:
            os._exit(_be_rank(rank, module, words))
        others.add(process)
    while others:
        process, status = os.wait()
        others.discard(process)
        if status and not code:
            code = os.waitstatus_to_exitcode(status)
            for other in others:
                os.kill(other, signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # what a rank that was ended so has left behind
    os._exit(code if code >= 0 else 128 - code)


def _free_port() -> int:
    """A port for rank 0, which binds it seconds later: from below those that the system gives away (32768 and on), and
    by this process's number, so that no other job takes it meanwhile."""
    for port in range(12_000 + os.getpid() % 20_000, 32_768):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port is free")


def _leave_out(where: str) -> None:
    """Replace ``module:function`` of the package by nothing, in this process."""
    module, _, function = where.partition(":")
    place = importlib.import_module(f"megatron_chimed.{module}")
    *owners, name = function.split(".")
    for owner in owners:
        place = getattr(place, owner)
    assert callable(getattr(place, name))
    setattr(place, name, lambda *args, **kwargs: None)


def _be_rank(rank: int, module: str, words: list[str]) -> int:
    """Run a rank; its exit code."""
    main = importlib.import_module(module).main
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    for where in filter(None, os.environ.get(WITHOUT, "").split(",")):
        function, _, only = where.partition("@")
        if only in ("", str(rank)):
            _leave_out(function)
    sys.argv = ["megatron_chimed", *words]
    try:
        main()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        multiprocessing.util._exit_function()  # as at Python's own end: processes that the rank has started end with it
