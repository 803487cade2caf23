"""Worker processes of the corpus builder.

They write their parts as files and return nothing: token ids never pass between processes as Python objects, which
would cost more than the tokenisation itself.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_chimed.corpus.inputs import LineBatch
from megatron_chimed.corpus.worker import Worker
from megatron_chimed.workers import Workers, map_in_order


def make_parts(
    jobs: Iterable[tuple[LineBatch, Path, bool]], worker: Worker, workers: Workers
) -> Iterator[tuple[LineBatch, Path]]:
    """Make the part of each (batch, path, wanted); yield (batch, path) in the same order, as they are there.

    workers, errors: see `map_in_order`. wanted: false for a part that is there already.
    """
    pieces = (((batch, path), (batch, path) if wanted else None) for batch, path, wanted in jobs)
    for (batch, path), _ in map_in_order(worker.make_part, pieces, workers):
        yield batch, path
