"""One tensor-parallel rank of a verification: ``python -m megatron_chimed.convert.verify_worker FOLDER``."""

import sys
from pathlib import Path

from megatron_chimed.backend.quiet import fast_imports


def main() -> None:
    """Put the CPU in place before Megatron is imported, and answer."""
    with fast_imports():
        from megatron_chimed.backend import cpu

        cpu.install()  # the check runs on CPUs wherever it runs: its arithmetic is then the same everywhere
        from megatron_chimed.convert.logits import answer
    answer(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
