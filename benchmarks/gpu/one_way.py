"""One measurement, in a process of its own: its result as JSON, its words in a log. Imports no library before it runs,
as the machine may lack one."""

import importlib.util
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from measurements import MEASUREMENTS, PACKAGES

from megatron_chimed.backend.quiet import silence_import_warnings
from megatron_chimed.jsonl import write_json

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_MEMORY = 3
"""Exit code."""

NO_MEMORY = "out of memory"
_PARTS = {"tests": "suite", "training": "training", "dialogues": "dialogues", "generation": "answers"}
MODULES = {way: _PARTS[one.part] for way, one in MEASUREMENTS.items()}
"""Of each way, the module beside this one whose `measure(way, given, path)` gives its figures."""


def enter(way: str, given: dict[str, Any], path: str, log: str) -> None:
    """Run a way, with a session of its own and all words in a file; exits with OUT_OF_MEMORY, or 1 after an error."""
    os.setsid()
    os.chdir(ROOT)
    with open(log, "ab", buffering=0) as said, open(os.devnull, "rb") as nothing:
        for number, file in enumerate((nothing, said, said)):
            os.dup2(file.fileno(), number)
    silence_import_warnings()
    try:
        found = probe() if way == "probe" else importlib.import_module(MODULES[way]).measure(way, given, Path(path))
    except BaseException as error:
        sys.stderr.flush()
        os.write(2, traceback.format_exc().encode())  # what sys.stderr is, one who forked this may have replaced
        os._exit(OUT_OF_MEMORY if type(error).__name__ == "OutOfMemoryError" else 1)
    write_json(path, found)


def probe() -> dict[str, Any]:
    """The GPU of this machine, its free memory in bytes, and which packages are installed.

    The name is "CPU" where torch has no GPU, or is not there at all.
    """
    packages = {package: _is_there(package) for package in PACKAGES}
    found = {"name": "CPU", "bytes": 0, "packages": packages}
    if packages["torch"]:
        import torch

        if torch.cuda.is_available():
            found |= {"name": torch.cuda.get_device_name(0), "bytes": torch.cuda.mem_get_info(0)[0]}
    return found


def _is_there(package: str) -> bool:
    """Whether a package is installed, without importing more than the one it is in."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def peak_bytes() -> int:
    """The most that torch has held on the GPU; on a CPU the most that the process has, libraries included."""
    import torch

    from megatron_chimed.backend import cpu

    if cpu.is_needed():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()
