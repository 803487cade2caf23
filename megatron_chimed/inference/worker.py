"""One tensor-parallel rank of the engine: ``python -m megatron_chimed.inference.worker SETTINGS`` (a JSON object)."""

import json
import sys

from megatron_chimed.backend.quiet import fast_imports


def main() -> None:
    """Choose the device, which must be in place before Megatron is imported, and serve."""
    with fast_imports():
        from megatron_chimed.backend import cpu

        if cpu.is_needed():
            cpu.install()  # from here on "cuda" is what this machine has
        from megatron_chimed.inference.server import serve
    serve(json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
