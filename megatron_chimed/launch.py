"""torchrun without its traceback: when a rank fails, its own message is the last word.

``python -m megatron_chimed.launch [torchrun options] -m megatron_chimed STAGE ...``

With MEGATRON_CHIMED_END_WITH_STDIN set, the job ends when its standard input does: whoever holds the other end of that
pipe takes the job along, even when killed.
"""

import logging
import os
import signal
import sys
import threading

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def end_with_stdin() -> None:
    """Ask this process to end, and with it its ranks, when the standard input ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run torchrun; exit with the failing rank's code."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if os.environ.get("MEGATRON_CHIMED_END_WITH_STDIN"):
        threading.Thread(target=end_with_stdin, daemon=True).start()
    try:
        torchrun()
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode != 1:  # a rank that exits with 1 has said why
            print(f"megatron_chimed: rank {rank} ended with code {failure.exitcode}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    main()
