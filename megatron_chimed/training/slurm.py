"""What a launcher heeds in a Slurm job: the time that is left, starts that lead nowhere, an address that is no use."""

import errno
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from megatron_chimed.checkpoints import latest_iteration
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json, write_json

STARTS = "slurm_starts.json"
MAX_IDLE_STARTS = 3
"""Starts of a job from one iteration; the next one is refused."""

SHUTDOWN = 30  # seconds at the end of a job for processes to leave, and Slurm's KillWait behind it
MAX_SAVE = 3600
"""Seconds that ranks get to save at the most: a signal may come a day before a job's end."""


def is_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is part of a Slurm job, in which Slurm itself kills what does not end."""
    return bool(environment.get("SLURM_JOB_ID"))


def seconds_to_save(environment: Mapping[str, str], now: float | None = None) -> int | None:
    """The time that ranks have from now on until their job's limit; None where it is not known.

    Slurm looks at the time every half a minute, so that its signal may come when all of it is over.
    """
    end = environment.get("SLURM_JOB_END_TIME", "")
    if not end.isdecimal():
        return None
    left = int(end) - int(time.time() if now is None else now)
    return min(MAX_SAVE, max(left - SHUTDOWN, left // 2)) if left > 1 else SHUTDOWN


def note_start(save: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Note from which iteration this start of a job begins.

    Raises InputError when the last starts of the same job began there too: it would go on so for ever.
    """
    if not is_job(environment):
        return
    job, restarts, file = environment["SLURM_JOB_ID"], environment.get("SLURM_RESTART_COUNT", "0"), save / STARTS
    known = read_json(file) if file.is_file() and restarts != "0" else {}
    starts = known.get("iterations", []) if known.get("job") == job else []
    latest = latest_iteration(save)
    if starts[-MAX_IDLE_STARTS:] == [latest] * MAX_IDLE_STARTS:
        raise InputError(
            f"job {job} has started {MAX_IDLE_STARTS} times from iteration {latest} and saved nothing since; it needs "
            "more time before it is stopped, or a smaller --save-interval; submit it anew to continue"
        )
    write_json(file, {"job": job, "iterations": [*starts, latest]})


def check_address(host: str, port: int, *, is_first: bool) -> None:
    """Raise InputError when machine 0 has no address here, or, on itself, when its port is taken.

    torch would try for minutes, or end with a traceback.
    """
    here = socket.gethostname()
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(
            f"MASTER_ADDR {host!r} has no address on {here} ({error.strerror}); set it to one that all machines know"
        ) from None
    if not is_first:
        return
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"MASTER_PORT {port} is taken on {here}; set another one") from None
