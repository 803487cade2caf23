"""The engine's ranks without their imports: forked from the process of `ranks`, which has imported torch and Megatron.

Only those that this process starts; what a command starts, and tests marked `real_processes`, have real ones.
"""

import importlib
import json
import os
import subprocess
import sys
import types
from multiprocessing import reduction

from megatron_chimed.inference import processes
from support.ranks import fork_server


class Forked:
    """A rank under way, with what `WorkerProcesses` needs of subprocess.Popen."""

    def __init__(self, module: str, settings: dict, environment: dict[str, str], log: int):
        with fork_server() as context:
            self._process = context.Process(target=_Rank(module, settings, environment, log))
            self._process.start()
        self.pid, self.returncode = self._process.pid, None

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutExpired."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("rank", timeout)
        return self.returncode


class _Rank:
    """What a forked process does: it takes the files that it is given, and is a rank."""

    def __init__(self, module: str, settings: dict, environment: dict[str, str], log: int):
        self.module, self.settings, self.environment = module, settings, environment
        self.files = {"socket": settings["socket"], "lifeline": settings["lifeline"], "log": log}

    def __getstate__(self) -> dict:
        return vars(self) | {"files": {name: reduction.DupFd(number) for name, number in self.files.items()}}

    def __call__(self) -> None:
        os.setsid()
        os.environ.clear()
        os.environ.update(self.environment)
        files = {name: file.detach() for name, file in self.files.items()}
        for number in (1, 2):
            os.dup2(files["log"], number)
        sys.argv = [self.module, json.dumps(self.settings | {name: files[name] for name in ("socket", "lifeline")})]
        importlib.import_module(self.module).main()


def start(command: list[str], *, env: dict[str, str], stdout, **options) -> Forked | subprocess.Popen:
    """In the place of subprocess.Popen in `WorkerProcesses`."""
    module, settings = command[2:]
    if module != processes.WORKER:
        return subprocess.Popen(command, env=env, stdout=stdout, **options)
    return Forked(module, json.loads(settings), env, stdout.fileno())


def set_forked(wanted: bool) -> None:
    """Whether engines that this process opens from now on have forked ranks."""
    stand_in = types.SimpleNamespace(**{name: getattr(subprocess, name) for name in subprocess.__all__})
    stand_in.Popen = start
    processes.subprocess = stand_in if wanted else subprocess
