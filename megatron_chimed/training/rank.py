"""One rank of a training: ``python -m megatron_chimed.training.rank STAGE MODEL.yaml STAGE.yaml ...``.

Started by `chimed train`. The CPU backend must be in place before Megatron is imported.
"""

import ctypes
import os
import signal
import sys
import time

from megatron_chimed.backend.quiet import fast_imports, silence_import_warnings
from megatron_chimed.errors import STOP_SIGNALS, InputError, LostRank, one_line

if __name__ in ("__main__", "__mp_main__"):  # also in processes that write checkpoints, which import the program again
    silence_import_warnings()


def die_with_launcher() -> None:
    """Have the kernel end this process with its launcher: ranks are in sessions of their own, and would train on."""
    prctl, set_parent_death_signal = ctypes.CDLL(None, use_errno=True).prctl, 1
    prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    """Run the stage; bad input becomes one line, printed by rank 0, or by another rank if rank 0 has none."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_launcher()
    try:
        with fast_imports():
            from megatron_chimed.backend import cpu

            if cpu.is_needed():
                cpu.install()
            from megatron_chimed.training.trainer import train

        train(sys.argv[1:])
    except InputError as error:
        rank = int(os.environ.get("RANK", 0))
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: os._exit(1))  # nothing is left to save; and it is a fault, not a stop
        # The same error on rank 0, and the fault of another rank, end the job within this time.
        time.sleep(3 * (rank > 0) + 3 * isinstance(error, LostRank))
        origin = f"rank {rank}: " if rank else ""
        print(f"megatron_chimed: error: {origin}{one_line(error)}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # process groups of the other ranks are of no use now, and their destructors may wait
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # Python's handlers end before the process does


if __name__ == "__main__":
    main()
