"""Pieces of work for tests of workers, in a module that the nodes of a cluster can import."""

import os
import time

from megatron_chimed.errors import InputError


def square(number: int) -> int:
    """The square of a number; of 13 none."""
    if number == 13:
        raise InputError("file:13: no")
    return number * number


def place(number: int) -> tuple[int, str, str]:
    """A number, the node that has it and where it works, after a while."""
    import ray

    time.sleep(0.05)
    return number, ray.get_runtime_context().get_node_id(), os.getcwd()
