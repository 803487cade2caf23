"""One rank of a training: ``python -m megatron_chimed STAGE MODEL.yaml STAGE.yaml [--megatron-arg value ...]``.

Started by launch/torchrun.sh. The CPU backend must be in place before Megatron is imported.
"""

import os
import signal
import sys
import time

from megatron_chimed.errors import InputError, LostRank, one_line
from megatron_chimed.quiet import hush

hush()  # here, because processes that write checkpoints import this module too


def main() -> None:
    """Run the stage; bad input becomes one line, printed by rank 0, or by another rank if rank 0 has none."""
    try:
        from megatron_chimed import cpu

        if cpu.is_needed():
            cpu.install()
        from megatron_chimed.train import train

        train(sys.argv[1:])
    except InputError as error:
        rank = int(os.environ.get("RANK", 0))
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)  # nothing is left to save
        # The same error on rank 0, and the fault of another rank, end the job within this time.
        time.sleep(3 * (rank > 0) + 3 * isinstance(error, LostRank))
        origin = f"rank {rank}: " if rank else ""
        print(f"megatron_chimed: error: {origin}{one_line(error)}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # process groups of the other ranks are of no use now, and their destructors may wait


if __name__ == "__main__":
    main()
