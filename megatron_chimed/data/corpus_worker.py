"""From a batch of JSON lines to a part of a corpus: parse, check, clean, tokenise. It runs in worker processes.

Workers write their parts as files and return nothing: token ids never pass between processes as Python objects, which
would cost more than the tokenisation itself.
"""

import collections
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from megatron_chimed.data.clean import clean, redact
from megatron_chimed.data.corpus_format import token_dtype
from megatron_chimed.data.corpus_input import MAX_LINE_BYTES, Batch
from megatron_chimed.data.corpus_part import Documents, Part, make_deduplicator, save_part, sign_all
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import parse_line
from megatron_chimed.tokenizer import Tokenizer

EXCERPT_CHARS = 200
_decode_json = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class TextOptions:
    """What is done to the rows: the settings that decide the ids which a row becomes.

    append_eod: end each document with the tokenizer's EOS. parse_special, add_special: see `Tokenizer.encode_batch`;
    the defaults are what Megatron's tool does, and add_special needs parse_special. clean: also redacts personal data.
    dedup: None, "exact" or "near".
    """

    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    parse_special: bool = True
    add_special: bool = True
    clean: bool = False
    redact: bool = False
    dedup: str | None = None


class Worker:
    """Makes parts. tokenizer: its ids must be below its vocab_size."""

    def __init__(self, tokenizer: Tokenizer, options: TextOptions):
        self.tokenizer, self.options = tokenizer, options
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.as_it_is = not (options.clean or options.redact)
        self.deduplicator = make_deduplicator(options.dedup)

    def make_part(self, batch: Batch, path: Path) -> None:
        """Read a batch and write its part. Raises InputError if the tokenizer gives an id outside its vocabulary."""
        content = batch.read()
        lines = _split_lines(content)
        escapes = b"\\ud" in content or b"\\uD" in content  # only so can half a character come in
        rejected: dict[int, str] = {}  # line number from 0 -> reason
        redacted: collections.Counter = collections.Counter()
        numbers, rows = [], []
        for number, line in enumerate(lines):
            if not line or line.isspace():
                continue
            try:
                if batch.overlong and number == len(lines) - 1:
                    raise InputError(f"line too long: over {MAX_LINE_BYTES} bytes")
                rows.append(self._prepare(_parse_row(line), redacted, escapes))
                numbers.append(number)
            except InputError as error:
                rejected[number] = str(error)
        num_rows = len(rows) + len(rejected)
        documents = {key: self._tokenize([row[i] for row in rows]) for i, key in enumerate(self.options.json_keys)}
        keep = np.logical_and.reduce([one.counts > 0 for one in documents.values()])
        rejected |= {numbers[place]: "empty document: no tokens" for place in np.flatnonzero(~keep)}
        part = Part(
            {key: self._finish(one.select(keep)) for key, one in documents.items()},
            sign_all(self.deduplicator, itertools.compress(rows, keep)),
            lines=len(lines),
            rows=num_rows,
            rejected=_quarantine(rejected, lines),
            reasons=dict(collections.Counter(map(kind_of, rejected.values()))),
            redacted=dict(redacted),
        )
        save_part(path, part)

    def _prepare(self, row: dict, redacted: collections.Counter, escapes: bool) -> list[list[str]]:
        """The row's texts: for each JSON key a list of sequences. Raises InputError with the reason to reject it."""
        texts = []
        for key in self.options.json_keys:
            if key not in row:
                raise InputError(f"missing key: {key!r}")
            value = row[key]
            if self.as_it_is and not escapes and value.__class__ is str and value:  # the usual case, quickly
                texts.append([value])
                continue
            sequences = value if isinstance(value, list) else [value]
            for text in sequences:
                if not isinstance(text, str):
                    raise InputError(f"not a string: field {key!r} holds {type(text).__name__}")
            if self.options.clean:
                sequences = [clean(text) for text in sequences]
            if escapes:
                for text in sequences:
                    _require_no_surrogate(text, key)
            if not any(sequences):
                raise InputError(f"empty document: field {key!r}")
            texts.append(sequences)
        if not self.as_it_is:
            texts = [[self._redact(text, redacted) for text in sequences] for sequences in texts]
        return texts

    def _redact(self, text: str, redacted: collections.Counter) -> str:
        text, counts = redact(text)
        redacted.update(counts)
        return text

    def _tokenize(self, texts: list[list[str]]) -> Documents:
        """Ids of the texts of one key [documents][sequences]; sequences without tokens are left out."""
        rows = self.tokenizer.encode_batch(
            list(itertools.chain.from_iterable(texts)),
            parse_special=self.options.parse_special,
            add_special=self.options.add_special,
        )
        lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        counts = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts))
        if not lengths.all():
            owners = np.repeat(np.arange(len(texts)), counts)
            counts = np.bincount(owners[lengths > 0], minlength=len(texts)).astype(np.int32)
            lengths = lengths[lengths > 0]
        if rows and isinstance(rows[0], np.ndarray):
            ids = np.concatenate(rows)
        else:
            ids = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.tokenizer.vocab_size:
            raise InputError(
                f"the tokenizer gave id {ids.max()}, outside its vocabulary of {self.tokenizer.vocab_size}; repair it"
            )
        return Documents(ids, lengths, counts)

    def _finish(self, documents: Documents) -> Documents:
        """EOD at the end of each document if asked for, and ids in the corpus's type."""
        ids, lengths = documents.ids, documents.lengths
        if self.options.append_eod:
            ids = np.insert(ids, np.cumsum(documents.num_tokens()), self.tokenizer.eos_id)
            lengths = lengths.copy()
            lengths[np.cumsum(documents.counts) - 1] += 1
        return Documents(ids.astype(self.dtype), lengths, documents.counts)


def _split_lines(content: bytes) -> list[str] | list[bytes]:
    """Lines without their ends, as text, or as bytes where they are not all UTF-8.

    A line ends with "\\n", "\\r\\n" or "\\r", as it does for a file that Python opens as text.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content.splitlines()
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _parse_row(line: str | bytes) -> dict:
    """`parse_line`, with a short cut for the usual line that is faster by half: it calls the C scanner directly."""
    if isinstance(line, bytes):
        return parse_line(line)
    if line.startswith("{"):
        try:
            row, end = _decode_json(line)
            if end == len(line):
                return row
        except (ValueError, RecursionError):
            pass  # parse_line says what is wrong
    return parse_line(line.encode())


def _require_no_surrogate(text: str, key: str) -> None:
    """Raise InputError if the text holds half a character, such as JSON's "\\ud800", which UTF-8 cannot express."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"unpaired surrogate: field {key!r}, character {error.start}") from None


def kind_of(reason: str) -> str:
    """The kind of a reason, by which they are counted: what stands before its details."""
    for mark in (" (", " at ", ", ", ": "):
        reason = reason.partition(mark)[0]
    return reason


def _quarantine(rejected: dict[int, str], lines: list[str] | list[bytes]) -> bytes:
    """JSON lines of the rejected rows {line number from 0: reason}, by line."""
    rows = ({"line": n + 1, "reason": rejected[n], "text": _excerpt(lines[n])} for n in sorted(rejected))
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _excerpt(line: str | bytes) -> str:
    """The beginning of a rejected line, for people."""
    if isinstance(line, bytes):
        line = line[: 4 * EXCERPT_CHARS].decode(errors="replace")
    return line[:EXCERPT_CHARS]


_worker: Worker | None = None  # of this worker process


def _start_worker(worker: Worker) -> None:
    """Set up a worker process: it leaves Ctrl-C to its parent and ends when its parent is gone."""
    global _worker
    _worker = worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The library's own threads would compete with the other workers, and must not be used after a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _make_part(batch: Batch, path: Path) -> None:
    _worker.make_part(batch, path)


def make_parts(
    jobs: Iterable[tuple[Batch, Path, bool]], worker: Worker, num_workers: int
) -> Iterator[tuple[Batch, Path]]:
    """Make the part of each (batch, path, wanted); yield (batch, path) in the same order, as they are there.

    num_workers: processes; 0 works in this one. wanted: false for a part that is there already. The number of jobs
    under way is bounded. Raises ChildProcessError when a worker dies.
    """
    if num_workers == 0:
        for batch, path, wanted in jobs:
            if wanted:
                worker.make_part(batch, path)
            yield batch, path
        return
    context = multiprocessing.get_context("fork")  # inherits the loaded tokenizer; starting anew costs a second
    with ProcessPoolExecutor(num_workers, context, _start_worker, (worker,)) as pool:
        under_way: collections.deque = collections.deque()
        try:
            for batch, path, wanted in jobs:
                under_way.append((batch, path, pool.submit(_make_part, batch, path) if wanted else None))
                if len(under_way) > 3 * num_workers:
                    yield _wait_for(*under_way.popleft())
            while under_way:
                yield _wait_for(*under_way.popleft())
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed (as a rule for lack of memory); what is finished is kept: "
                "run the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(batch: Batch, path: Path, future) -> tuple[Batch, Path]:
    if future is not None:
        future.result()
    return batch, path
