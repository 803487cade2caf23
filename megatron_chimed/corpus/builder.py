"""Build a corpus: JSON lines to Megatron's indexed dataset, a drop-in for Megatron's tools/preprocess_data.py.

The same rows give byte-identical .bin and .idx files. Beyond that: bad rows go into a file of their own instead of
hanging the tool, cleaning, redaction, deduplication, a manifest with hashes, work on several machines, and safety
against being killed. The input is cut into batches (inputs); worker processes (pool) make a part of each (worker,
part); the parts are joined in document order as they come (output). Finished parts wait in PREFIX.work, so that a run
that was killed is continued, and everything appears under its final name at the end, the manifest last.
"""

import collections
import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from megatron_chimed import __version__
from megatron_chimed.corpus.indexed_dataset import token_dtype
from megatron_chimed.corpus.inputs import (
    InputRange,
    LineBatch,
    count_lines_before,
    cut_line_batches,
    digest_source,
    identity,
    select_shard,
)
from megatron_chimed.corpus.output import Assembler, manifest_path, number_rejected
from megatron_chimed.corpus.part import load_part
from megatron_chimed.corpus.pool import make_parts
from megatron_chimed.corpus.worker import TextOptions, Worker
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import expand, sha256_json
from megatron_chimed.steps import find_up_to_date
from megatron_chimed.text.bulk import alone_because, guarded
from megatron_chimed.text.tokenizer import Tokenizer
from megatron_chimed.workers import Bar, Workers, check_workers

MADE_BY = "tools/preprocess_data.py"


@dataclass(frozen=True)
class RunOptions:
    """Options of a run; none of them changes the ids.

    workers: see `Workers`; max_rejected_share: of the rows that are not blank; num_shards,
    shard_index: make only one of so many contiguous parts of the input (shard_index None: all of it); batch_bytes:
    text for one part; progress: show a bar on stderr.
    """

    workers: Workers = 0
    max_rejected_share: float = 0.01
    num_shards: int = 1
    shard_index: int | None = None
    batch_bytes: int = 4 << 20
    progress: bool = True

    def __post_init__(self):
        check_workers(self.workers)
        if self.batch_bytes < 1 or not 0 <= self.max_rejected_share <= 1:
            raise InputError("--batch-mb must be above 0, --max-rejected-share from 0 to 1")
        if self.num_shards < 1 or not 0 <= (self.shard_index or 0) < self.num_shards:
            raise InputError(f"--shard-index {self.shard_index} of {self.num_shards} shards; they are counted from 0")
        if self.num_shards > 1 and self.shard_index is None:
            raise InputError("--num-shards needs --shard-index, from 0: one call for each shard, then --merge")


def shard_prefix(prefix: Path, num_shards: int, shard_index: int) -> Path:
    """Name one shard's own corpus: PREFIX_shard-00000-of-00008."""
    return prefix.with_name(f"{prefix.name}_shard-{shard_index:05d}-of-{num_shards:05d}")


def build_corpus(
    inputs: list[str], prefix: Path, tokenizer: Tokenizer, text: TextOptions, run: RunOptions, tokenizer_path: str = ""
) -> dict:
    """Build a corpus, or continue, or find that it is there already. Returns its manifest.

    inputs: names and globs of JSON-lines files, .gz too; prefix: outputs are PREFIX_{key}_document.bin and .idx,
    PREFIX.rejected.jsonl and PREFIX.manifest.json. With a shard_index PREFIX becomes `shard_prefix`, and duplicates
    stay in until the shards are merged. tokenizer_path: for the manifest.
    Raises InputError: no such input, another run on the same prefix, too many rejected rows, no document at all.
    """
    if text.append_eod and tokenizer.eos_id is None:
        raise InputError(f"{tokenizer_path}: the tokenizer has no EOS to append; leave out --append-eod")
    if run.shard_index is not None:
        prefix = shard_prefix(prefix, run.num_shards, run.shard_index)
    sources = select_shard(expand(inputs, "--input "), run.num_shards, run.shard_index or 0)

    def build(difference: str | None) -> dict:
        return _build(sources, prefix, Worker(tokenizer, text), run, tokenizer_path, difference)

    return guarded(build)


def _build(
    sources: list[InputRange],
    prefix: Path,
    worker: Worker,
    run: RunOptions,
    tokenizer_path: str,
    difference: str | None,
) -> dict:
    """`build_corpus` of these sources. difference: a text that made this a run of the tokenizer alone (`guarded`)."""
    tokenizer, text, sharded = worker.tokenizer, worker.options, run.shard_index is not None
    settings = {"version": __version__, **asdict(text), "json_keys": list(text.json_keys)}
    parents = {"tokenizer": tokenizer.fingerprint, "settings": sha256_json(settings)}
    with work_folder(prefix) as work:
        hash_inputs = functools.partial(_hash_sources, sources)
        if present := find_finished(prefix, parents, hash_inputs, run.max_rejected_share):
            return present
        _discard_stale_parts(work, sha256_json([parents, identity(sources), run.batch_bytes, difference]))
        made = Assembler(
            work / "joined",
            text.json_keys,
            token_dtype(tokenizer.vocab_size),
            dedup=None if sharded else text.dedup,
            keep_signatures=sharded and text.dedup is not None,
        )
        with contextlib.closing(made) as assembler:
            digests = _make_and_join(work, sources, worker, assembler, run)
            _require_good_input(assembler, run)
            return assembler.publish(
                prefix,
                made_by=MADE_BY,
                parents={**parents, "inputs": _input_hash(digests)},
                vocab_size=tokenizer.vocab_size,
                tokenizer={"path": tokenizer_path, "fingerprint": tokenizer.fingerprint, **alone_because(difference)},
                sources=[{**asdict(one), "sha256": digest} for one, digest in zip(sources, digests, strict=True)],
                settings=settings,
            )


def _input_hash(digests: Iterator[str]) -> str:
    """Hash all inputs, in their order."""
    return sha256_json(list(digests))


def _hash_sources(sources: list[InputRange]) -> str:
    return _input_hash(map(digest_source, sources))


@contextlib.contextmanager
def work_folder(prefix: Path) -> Iterator[Path]:
    """Hold PREFIX.work for this process alone. It goes when the work is done or the input is at fault, else it stays.

    Raises InputError if another run holds it.
    """
    work = prefix.with_name(f"{prefix.name}.work")
    lock = _lock(work, prefix)
    try:
        yield work
        shutil.rmtree(work, ignore_errors=True)  # the corpus is whole: what stays behind does no harm
    except InputError:
        shutil.rmtree(work)
        raise
    finally:
        lock.close()


def _lock(work: Path, prefix: Path) -> IO:
    """Hold PREFIX.work/lock. Worker processes inherit it, so that it outlives a killed run as long as they do."""
    for _ in range(10):  # the workers of a run that was just killed need a moment to notice
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(work / "lock", "w")  # noqa: SIM115 (held until the work is done)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(work / "lock")):
                return lock
        except (BlockingIOError, FileNotFoundError):  # held, or removed by a run that has just finished
            pass
        time.sleep(0.2)
    raise InputError(f"{prefix}: another run is at work on this prefix ({work}/lock is held); wait for it")


def find_finished(prefix: Path, parents: dict, input_hash, max_rejected_share: float = 1) -> dict | None:
    """Find the manifest of a whole corpus made of the same inputs in the same way, or None.

    input_hash: a function, called only if all else is equal, as it reads all inputs. max_rejected_share: a corpus that
    was made with more bad rows than this is not taken.
    """

    def few_rejected(content: dict) -> bool:
        rejected = sum(count for kind, count in content["dropped"].items() if not kind.endswith(" duplicate"))
        return rejected <= max_rejected_share * content["input_rows"]

    content = find_up_to_date(manifest_path(prefix), parents, late={"inputs": input_hash}, accept=few_rejected)
    if content:
        print(f"{prefix}: up to date", file=sys.stderr)
    return content


def _discard_stale_parts(work: Path, key: str) -> None:
    """Keep the parts in the work folder only if they were made for the same key."""
    if not (work / "key").exists() or (work / "key").read_text() != key:
        shutil.rmtree(work / "parts", ignore_errors=True)
        (work / "key").write_text(key)
    (work / "parts").mkdir(exist_ok=True)
    finished = len(list((work / "parts").glob("*.npz")))
    if finished:
        print(f"continuing: {finished} parts are finished", file=sys.stderr)


def _make_and_join(
    work: Path, sources: list[InputRange], worker: Worker, assembler: Assembler, run: RunOptions
) -> list[str]:
    """Make all parts that are not there yet and append each to the assembler. Returns the SHA-256 of each source."""
    digests = [hashlib.sha256() for _ in sources]

    def jobs() -> Iterator[tuple[LineBatch, Path, bool]]:
        number = 0
        for index, source in enumerate(sources):
            for batch in cut_line_batches(index, source, run.batch_bytes, digests[index]):
                path = work / "parts" / f"{number:08d}.npz"
                yield batch, path, not path.exists()
                number += 1

    lines_before = collections.Counter()
    first_line = functools.cache(lambda index: count_lines_before(sources[index]))
    total = sum(source.end - source.start for source in sources)
    with Bar(total=total, unit="B", unit_scale=True, disable=not run.progress, mininterval=0.5) as bar:
        for batch, path in make_parts(jobs(), worker, run.workers):
            part = load_part(path)
            if part is None:  # damaged by a power cut: make it again
                worker.make_part(batch, path)
                part = load_part(path)
            rejected = part.rejected
            if rejected:
                line = first_line(batch.source) + lines_before[batch.source]
                rejected = number_rejected(rejected, batch.path, line)
            lines_before[batch.source] += part.lines
            assembler.add(part, rejected)
            bar.update(batch.consumed)
    return [digest.hexdigest() for digest in digests]


def _require_good_input(assembler: Assembler, run: RunOptions) -> None:
    """Raise InputError if too many rows were rejected, or nothing is left."""
    rejected, rows = sum(assembler.reasons.values()), assembler.num_rows
    if rejected > run.max_rejected_share * rows:
        example = assembler.first_rejected()
        raise InputError(
            f"{rejected} of {rows} rows are bad, above --max-rejected-share {run.max_rejected_share:g}; "
            f"the first: {example['file']}:{example['line']}: {example['reason']}; mend the input or raise the share"
        )
    if not assembler.num_documents and run.shard_index is None:
        raise InputError("no documents in the input; check --input and --json-keys")
