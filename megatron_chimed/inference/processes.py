"""Processes of the engine: started together, asked together, ended for sure."""

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.workers import count_cores

WORKER = "megatron_chimed.inference.worker"


class WorkerProcesses:
    """The tensor-parallel ranks of one model, each a process with a socket of its own.

    They do not outlive this process, however it ends: each watches a pipe that the kernel closes with it. Their output
    goes to a log in a private folder, and is quoted when one of them fails.
    """

    def __init__(
        self,
        number: int,
        settings: dict[str, Any],
        worker: str = WORKER,
        environment: Mapping[str, str] | None = None,
        patience: float = 5.0,
    ):
        """settings: for the worker's module, which gets them with what tells its rank. environment: what it finds
        there beside this process's own variables; those of tensor-parallel ranks if not given. patience: seconds in
        which a worker ends by itself; then it is killed, and with it what it has started."""
        self._worker, self._environment, self._patience = worker, environment, patience
        self._folder = tempfile.TemporaryDirectory(prefix="megatron_chimed-")
        self._log = Path(self._folder.name) / "log"
        self._processes: list[subprocess.Popen] = []
        self._sockets: list[socket.socket] = []
        self._lifeline: int | None = None
        try:
            self._start(number, settings)
        except BaseException:
            self.close()
            raise

    def _start(self, number: int, settings: dict[str, Any]) -> None:
        """Start all processes; they load the model by themselves."""
        watched, self._lifeline = os.pipe()
        given = self._environment
        environment = _of_ranks(number) | os.environ if given is None else os.environ | given
        try:
            with open(self._log, "wb") as log:
                for rank in range(number):
                    ours, theirs = socket.socketpair()
                    self._sockets.append(ours)
                    more = {"rank": rank, "ranks": number, "store": f"{self._folder.name}/store"}
                    more |= {"socket": theirs.fileno(), "lifeline": watched, "log": str(self._log)}
                    with theirs:
                        process = subprocess.Popen(
                            [sys.executable, "-m", self._worker, json.dumps(settings | more)],
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=log,
                            pass_fds=(theirs.fileno(), watched),
                            start_new_session=True,  # an interrupt is for this process, which then ends them
                        )
                    self._processes.append(process)
        finally:
            os.close(watched)

    def ask(self, request: dict[str, Any]) -> Any:
        """Send all ranks a request and return their answer. Raises as `answer`."""
        self.send(request)
        return self.answer()

    def send(self, request: dict[str, Any]) -> None:
        """Send all ranks a request. Raises ChildProcessError when one is gone."""
        if not self._sockets:
            raise ChildProcessError("the inference engine has ended; start another one")
        line = json.dumps(request).encode() + b"\n"
        for rank, channel in enumerate(self._sockets):
            try:
                channel.sendall(line)
            except OSError:
                raise self._failure(rank) from None

    def answer(self) -> Any:
        """Wait for the answer of all ranks.

        Raises InputError with a rank's complaint, and ChildProcessError, one line with the last words of the log, when
        a rank is gone.
        """
        answers = [b""] * len(self._sockets)
        with selectors.DefaultSelector() as waiting:
            for rank, channel in enumerate(self._sockets):
                waiting.register(channel, selectors.EVENT_READ, rank)
            while waiting.get_map():
                ready = waiting.select(1.0)
                if not ready:  # a socket stays open where a process that the rank has forked outlives it
                    self._raise_if_ended()
                for key, _ in ready:
                    rank, chunk = key.data, self._read(key.data)
                    answers[rank] += chunk
                    if chunk.endswith(b"\n"):
                        waiting.unregister(key.fileobj)
                        self._raise_complaint(answers[rank])
        if len(set(answers)) > 1:
            self.close()
            raise RuntimeError("the tensor-parallel ranks disagree on a result: their arithmetic differs")
        return json.loads(answers[0])["result"]

    def _raise_if_ended(self) -> None:
        """Raise ChildProcessError if a rank is gone."""
        for rank, process in enumerate(self._processes):
            if process.poll() is not None:
                raise self._failure(rank)

    def _read(self, rank: int) -> bytes:
        """What a rank has written; raises ChildProcessError if it is gone."""
        with contextlib.suppress(ConnectionResetError):  # it died with a request unread
            if chunk := self._sockets[rank].recv(1 << 20):
                return chunk
        raise self._failure(rank)

    def _raise_complaint(self, answer: bytes) -> None:
        """Raise InputError if an answer is one, and end all ranks: others may wait for this one for ever."""
        if answer.startswith(b'{"error"'):
            self.close()
            raise InputError(json.loads(answer)["error"])

    def _failure(self, rank: int) -> ChildProcessError:
        """What to raise when a rank is gone; ends the others."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[rank].wait(10)
        code = self._processes[rank].returncode
        said = last_words(self._log)
        self.close()
        if code is not None and code < 0:
            why = " (as a rule for lack of memory)" if code == -signal.SIGKILL else ""
            return ChildProcessError(f"inference rank {rank} was killed by signal {-code}{why}")
        return ChildProcessError(f"inference rank {rank} ended with code {code}: {said}")

    def close(self) -> None:
        """End all processes, and wait for it. Twice is harmless."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        for channel in self._sockets:
            channel.close()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._patience)
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left, or nothing of ours
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes, self._sockets = [], []
        self._folder.cleanup()


def _of_ranks(number: int) -> dict[str, str]:
    """What tensor-parallel ranks find in their environment, where this process's own does not say otherwise."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, count_cores() // number)),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # as Megatron demands
        "PYTHONWARNINGS": "ignore",
        "LOCAL_WORLD_SIZE": str(number),
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # the ranks listen to each other alone
    return environment


def last_words(log: str | Path, otherwise: str = "") -> str:
    """The line of a log that says why a process failed: the first that names an error, else what is given, else the
    last; 300 characters.

    What a logger writes in front of the error's name is left out.
    """
    lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    named = (re.match(r"(?:.*\] )?([\w.]*(?:Error|Exception)\b.*)", line) for line in lines)
    errors = [found[1] for found in named if found]
    return (errors or ([otherwise] if otherwise else lines[-1:]) or ["no reason given"])[0].strip()[:300]
