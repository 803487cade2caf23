"""A process that has imported torch, Megatron and transformers, from which programs are forked (`support.forked`).

``python -m support.fork_server NUMBER``, of the socket at which it is asked, as `set_forked` starts it. It ends, as do
its programs, with the pipe that is its standard input.
"""

import array
import atexit
import contextlib
import fcntl
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path

from support.forked import ON_CPU, SERVER, at_the_start
from support.paths import TESTS

REAL = sys.executable

HIGH = 200
"""The files of a program wait above this number, so that none lies where another belongs."""


class Server:
    """Forks a process for each connection, and says on it when the process has ended."""

    def __init__(self, listener: socket.socket):
        self._listener = listener
        self._ended, wakes = socket.socketpair()
        wakes.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._files = [listener, self._ended, wakes]
        self._waiting = selectors.DefaultSelector()
        for source in (0, listener, self._ended):
            self._waiting.register(source, selectors.EVENT_READ)
        self._askers: dict[int, socket.socket] = {}

    def serve(self) -> tuple[dict, list[int]]:
        """Fork for ever; returns in each forked process, what it is to be and its files."""
        while True:
            for key, _ in self._waiting.select():
                if key.fileobj == 0:
                    self._end()
                elif key.fileobj is self._listener:
                    asker, _ = self._listener.accept()
                    request, files = _receive(asker)
                    if not self._fork(asker):
                        return request, files
                    for file in files:
                        os.close(file)
                elif key.fileobj is self._ended:
                    self._ended.recv(1 << 12)
                    self._say_ends()
                else:  # who asked is gone, or wants no more of it
                    self._waiting.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _end(self) -> None:
        """End, and all programs."""
        for program in self._askers:
            os.kill(program, signal.SIGKILL)
        os._exit(0)

    def _fork(self, asker: socket.socket) -> int:
        """Fork, and say who it is; 0 in the forked process, which is left with no file of the server's."""
        if program := os.fork():
            self._askers[program] = asker
            self._waiting.register(asker, selectors.EVENT_READ, program)
            asker.sendall(b"%d\n" % program)
            return program
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._waiting.close()
        for one in (asker, *self._files, *self._askers.values()):
            one.close()
        return 0

    def _say_ends(self) -> None:
        """Say the exit codes of programs that have ended."""
        while self._askers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            program, status = ended
            asker = self._askers.pop(program)
            with contextlib.suppress(KeyError):
                self._waiting.unregister(asker)
            with asker, contextlib.suppress(OSError):
                asker.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _receive(asker: socket.socket) -> tuple[dict, list[int]]:
    """A request, one line of JSON, and the files that came with its first byte."""
    files = array.array("i")
    line, sent, _, _ = asker.recvmsg(1 << 16, socket.CMSG_SPACE(64 * files.itemsize))
    for _, _, numbers in sent:
        files.frombytes(numbers)
    while not line.endswith(b"\n"):
        line += asker.recv(1 << 20)
    return json.loads(line), list(files)


def become(request: dict, files: list[int]) -> None:
    """Be the program that is asked for: in its environment and folder, with its files under its numbers."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    aside = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(aside, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    for number, name in enumerate(("stdin", "stdout", "stderr")):  # the server's take these for what its own were
        old = getattr(sys, name)
        new = open(number, old.mode, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        new.reconfigure(line_buffering=name == "stderr" or new.isatty())
        setattr(sys, name, new)
    sys.executable = request["executable"]
    sys.path[:] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place] + sys.path
    _run(*request["words"])


def _run(first: str, *words: str) -> None:
    """As Python does: ``-m MODULE``, ``-c CODE`` or a script, and its words, behind ``-u`` or not."""
    if first == "-u":
        sys.stdout.reconfigure(line_buffering=True)
        _run(*words)
    elif first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = list(words)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *words[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(first)))
        sys.argv = [first, *words]
        runpy.run_path(first, run_name="__main__")


def exit_code(program: Callable[[], None]) -> int:
    """Run a program, and do what Python does at the end, but take itself apart: half a second. Its code."""
    code: object = 1
    try:
        program()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    if not (code is None or isinstance(code, int)):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code or 0)


@cache
def _start() -> tuple[str, subprocess.Popen]:
    """Start the server of this process; the stand-in for Python, and what keeps the server."""
    folder = Path(tempfile.mkdtemp(prefix="tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    environment = os.environ | ON_CPU | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    with socket.create_server(str(folder / "socket"), family=socket.AF_UNIX, backlog=128) as listener:
        process = subprocess.Popen(
            [REAL, "-m", "support.fork_server", str(listener.fileno())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    os.environ[SERVER] = json.dumps({"socket": str(folder / "socket"), "start": at_the_start(environment)})
    stand_in = folder / "python"
    lines = ["import sys", f"sys.path.insert(0, {str(TESTS)!r})", "from support.forked import main", "main()"]
    stand_in.write_text("\n".join([f"#!{REAL} -IS", *lines]))
    stand_in.chmod(0o755)
    return str(stand_in), process


def set_forked(wanted: bool) -> None:
    """Whether programs that this process starts from now on by `sys.executable` are forked."""
    sys.executable = _start()[0] if wanted else REAL


if __name__ == "__main__":
    import support.preloaded  # noqa: F401

    request, files = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    os._exit(exit_code(lambda: become(request, files)))
