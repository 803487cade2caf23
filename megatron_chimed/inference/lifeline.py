"""The pipe by which a worker learns that the process that started it has ended, however that ended."""

import os
import threading
from collections.abc import Callable


def watch(lifeline: int, end: Callable[[], None]) -> threading.Thread:
    """Call `end` in a thread of its own, which is returned, when the other end of a pipe is closed."""

    def wait() -> None:
        os.read(lifeline, 1)
        end()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
