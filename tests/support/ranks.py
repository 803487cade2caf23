"""Ranks of a training without the launcher: forked from one process, which is forked itself (`support.forked`).

What torchrun does for them is done here: their number and address in the environment, and when one fails the others are
ended. Tests of the launcher itself, and all that a user starts, go through launch/torchrun.sh.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

from torch.distributed import TCPStore

from megatron_chimed.backend import cpu
from support.fork_server import exit_code
from support.forked import ON_CPU, Forked
from support.paths import TESTS

WITHOUT = "TESTS_WITHOUT_PATCHES"
"""The variable that names functions, ``module:function``, which ranks leave out; with ``@1`` rank 1 alone."""
TRAINING = "megatron_chimed.training.rank"


def start(words: list[object], ranks: int, output: Path, module: str = TRAINING) -> Forked:
    """Start ``python -m megatron_chimed.training.rank WORDS`` as so many ranks on the CPU, output added to a file.

    module: another one with a `main`, which reads its words from sys.argv.
    """
    command = ["-m", "support.ranks", module, str(ranks), *map(str, words)]
    with open(output, "ab") as said, open(os.devnull, "rb") as nothing:
        files = {0: nothing.fileno(), 1: said.fileno(), 2: said.fileno()}
        return Forked(command, os.environ | ON_CPU, files, TESTS.parent)


def main() -> None:
    """MODULE RANKS WORDS: fork the ranks; exit with the code of the first that fails, or 0."""
    module, ranks, *words = sys.argv[1:]
    cpu.install()
    os.environ |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if int(ranks) > 1:  # the others would find no store of rank 0's yet, and try again after a second
        os.environ |= {"MASTER_PORT": str(_start_store()), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    others, code = set(), 0
    for rank in range(int(ranks)):
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


def _start_store() -> int:
    """Fork the process by which the ranks find each other, which ends when the last of them has; its port."""
    (there, here), (watched, open_end) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(open_end)  # which stays open in this process and the ranks
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(here, b"%d" % store.port)
        os.read(watched, 1)
        os._exit(0)
    os.close(here)  # or a store that fails would be waited for
    return int(os.read(there, 16))


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
    return exit_code(main)


if __name__ == "__main__":
    main()
