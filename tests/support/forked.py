"""Programs without their imports: forked from a process that has imported torch and Megatron (`support.fork_server`).

A program so costs its work alone, and not four seconds before. `python` is a stand-in for Python that has them forked;
where it is `sys.executable`, as in tests that need torch, what they start is forked, and what that starts in its turn.
Tests of how processes start and end, marked `real_processes`, have real ones, as have users.
"""

import array
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

ON_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "PYTHONWARNINGS": "ignore",
}
SERVER = "TESTS_FORK_SERVER"
"""The variable that holds the server's socket, and what its `AT_THE_START` are."""
AT_THE_START = ("PYTHON", "LC_", "LANG")
"""What Python looks at when it starts begins so: where the server has had other values, a program is real."""
LATER = ("PYTHON", "PYTHONPATH", "PYTHONWARNINGS")
PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


class Forked:
    """A program under way, with what its users need of subprocess.Popen. Its processes are a session of their own."""

    def __init__(self, words: list[str], environment: dict[str, str], files: dict[int, int], folder: str | os.PathLike):
        """words: behind ``python``. files: the numbers that they have there, and have here. folder: where it works."""
        self.returncode = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(json.loads(environment[SERVER])["socket"])
        request = {
            "words": words,
            "environment": environment,
            "folder": str(folder),
            "files": list(files),
            "executable": sys.executable,
        }
        line = json.dumps(request).encode() + b"\n"
        numbers = array.array("i", files.values())
        sent = self._server.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        self._server.sendall(line[sent:])
        self.pid = int(self._read())

    def _read(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            if not (more := self._server.recv(1)):
                raise ChildProcessError("the fork server has ended")
            line += more
        return line

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("program", timeout)
            self.returncode = int(self._read())
            self._server.close()
        return self.returncode


def main() -> None:
    """Be `python`: have a program forked, be ended as it is, and pass it the signals that come."""
    words, real = sys.argv[1:], sys.executable
    forks = words and (words[0] in ("-u", "-m", "-c") or not words[0].startswith("-")) and SERVER in os.environ
    if not forks or json.loads(os.environ[SERVER])["start"] != at_the_start(os.environ):
        os.execv(real, [real, *words])
    numbers = {signal.Signals[name] for name in PASSED_ON}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    sys.executable = sys.argv[0]
    inherited = [int(name) for name in os.listdir("/dev/fd")]
    files = {number: number for number in inherited if _is_inherited(number)}
    program = Forked(words, dict(os.environ), files, os.getcwd())
    for number in numbers:
        signal.signal(number, lambda number, _: os.kill(program.pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    code = program.wait()
    if code < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _is_inherited(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:  # the folder of the files
        return False


def at_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that begin with `AT_THE_START`."""
    return {name: value for name, value in environment.items() if name.startswith(AT_THE_START) and name not in LATER}
