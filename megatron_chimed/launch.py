"""torchrun without its traceback: when a rank fails, its own message is the last word.

``python -m megatron_chimed.launch [torchrun options] -m megatron_chimed STAGE ...``
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main() -> None:
    """Run torchrun; exit with the failing rank's code."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode != 1:  # a rank that exits with 1 has said why
            print(f"megatron_chimed: rank {rank} ended with code {failure.exitcode}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    main()
