"""Processes of others: whether they are there, and waiting for their end."""

import time


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_ended(processes: list[int]) -> None:
    """Wait for the end of all; pytest's limit ends a test that hangs."""
    while any(map(alive, processes)):
        time.sleep(0.05)
