"""Make a part of a corpus of a batch of JSON lines: parse, check, clean, tokenise. It runs in worker processes."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from megatron_chimed.corpus.indexed_dataset import token_dtype
from megatron_chimed.corpus.inputs import LineBatch
from megatron_chimed.corpus.part import Documents, Part, make_deduplicator, save_part, sign_all
from megatron_chimed.data.clean import clean, redact
from megatron_chimed.data.rejected import excerpt, kind_of
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import MAX_LINE_BYTES, parse_line
from megatron_chimed.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextOptions:
    """Options of the rows: the settings that decide the ids which a row becomes.

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


Text = str | list[str]  # a document's text: one sequence, or a list of them


class Rows(NamedTuple):
    """Rows of a batch: texts by JSON key [documents] and line numbers (from 0) of good rows; {line: reason} of the
    bad."""

    texts: dict[str, list[Text]]
    numbers: Sequence[int]
    rejected: dict[int, str]


class Changed:
    """What was done to the texts of a batch: redacted by kind, cleaned by rule."""

    def __init__(self):
        self.redacted: Counter = Counter()
        self.cleaned: Counter = Counter()


class Worker:
    """Maker of parts. tokenizer: its ids must be below its vocab_size."""

    def __init__(self, tokenizer: Tokenizer, options: TextOptions):
        self.tokenizer, self.options = tokenizer, options
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.as_it_is = not (options.clean or options.redact)
        self.deduplicator = make_deduplicator(options.dedup)

    def make_part(self, batch: LineBatch, path: Path) -> None:
        """Read a batch and write its part. Raises InputError if the tokenizer gives an id outside its vocabulary."""
        content = batch.read()
        lines = _split_lines(content)
        escapes = b"\\ud" in content or b"\\uD" in content  # only so can half a character come in
        changed = Changed()
        rows = self._read_rows(lines, batch, escapes, changed)
        num_rows = len(rows.numbers) + len(rows.rejected)
        documents = {key: self._tokenize(texts) for key, texts in rows.texts.items()}
        keep = np.logical_and.reduce([one.counts > 0 for one in documents.values()])
        empty = {rows.numbers[place]: "empty document: no tokens" for place in np.flatnonzero(~keep)}
        rejected = rows.rejected | empty
        part = Part(
            {key: self._finish(one.select(keep)) for key, one in documents.items()},
            sign_all(self.deduplicator, itertools.compress(zip(*rows.texts.values(), strict=True), keep)),
            lines=len(lines),
            rows=num_rows,
            rejected=_rejected_lines(rejected, lines, self.as_it_is),
            reasons=dict(Counter(map(kind_of, rejected.values()))),
            redacted=dict(changed.redacted),
            cleaned=dict(changed.cleaned),
        )
        save_part(path, part)

    def _read_rows(self, lines: list[bytes], batch: LineBatch, escapes: bool, changed: Changed) -> Rows:
        """Read the rows of a batch's lines. escapes: whether "\\ud..." occurs; changed: is counted up."""
        usual = self._usual_texts(lines)
        if self.as_it_is and all(usual) and not batch.overlong:
            return Rows({self.options.json_keys[0]: usual}, range(len(lines)), {})
        rows = Rows({key: [] for key in self.options.json_keys}, [], {})
        for number, (line, text) in enumerate(zip(lines, usual, strict=True)):
            cut_off = batch.overlong and number == len(lines) - 1
            if not cut_off and (not line or line.isspace()):
                continue
            try:
                if cut_off:
                    raise InputError(f"line too long: over {MAX_LINE_BYTES} bytes")
                if text is None or not self.as_it_is:
                    row = parse_line(line) if text is None else {self.options.json_keys[0]: text}
                    texts = self._prepare(row, changed, escapes)
                else:
                    texts = [text]
                for column, one in zip(rows.texts.values(), texts, strict=True):
                    column.append(one)
                rows.numbers.append(number)
            except InputError as error:
                rows.rejected[number] = str(error)
        return rows

    def _usual_texts(self, lines: list[bytes]) -> list[str | None]:
        """Read for each line its text, where the line is a usual one; None where it must be looked at more closely.

        Most lines of most corpora are usual, and most time besides tokenisation goes here: one loop, a fast parser.
        """
        if len(self.options.json_keys) > 1:
            return [None] * len(lines)
        (key,) = self.options.json_keys
        texts: list[str | None] = []
        for line in lines:
            try:
                text = orjson.loads(line)[key]
            except (ValueError, LookupError, TypeError):
                text = None  # not JSON (or beyond orjson: NaN, half a character), not an object, no such key
            texts.append(text if text.__class__ is str and text else None)
        return texts

    def _prepare(self, row: dict, changed: Changed, escapes: bool) -> list[Text]:
        """Prepare the row's texts, one for each JSON key. Raises InputError with the reason to reject it."""
        texts = []
        for key in self.options.json_keys:
            if key not in row:
                raise InputError(f"missing key: {key!r}")
            value = row[key]
            sequences = value if isinstance(value, list) else [value]
            for text in sequences:
                if not isinstance(text, str):
                    raise InputError(f"not a string: field {key!r} holds {type(text).__name__}")
            if self.options.clean:
                sequences = [clean(text, changed.cleaned) for text in sequences]
            if escapes:
                for text in sequences:
                    _require_no_surrogate(text, key)
            if not any(sequences):
                raise InputError(f"empty document: field {key!r}")
            texts.append(sequences)
        if not self.as_it_is:
            texts = [[self._redact(text, changed.redacted) for text in sequences] for sequences in texts]
        return texts

    def _redact(self, text: str, redacted: Counter) -> str:
        text, counts = redact(text)
        if counts:
            redacted.update(counts)
        return text

    def _tokenize(self, texts: list[Text]) -> Documents:
        """Tokenize the texts of one key [documents]; sequences without tokens are left out."""
        sequences, counts = texts, np.ones(len(texts), dtype=np.int32)
        if set(map(type, texts)) != {str}:
            texts = [[text] if isinstance(text, str) else text for text in texts]
            sequences = list(itertools.chain.from_iterable(texts))
            counts = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts))
        options = self.options
        ids, lengths = self.tokenizer.encode_flat(
            sequences, parse_special=options.parse_special, add_special=options.add_special
        )
        if not lengths.all():
            owners = np.repeat(np.arange(len(texts)), counts)
            counts = np.bincount(owners[lengths > 0], minlength=len(texts)).astype(np.int32)
            lengths = lengths[lengths > 0]
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.tokenizer.vocab_size:
            raise InputError(
                f"the tokenizer gave id {ids.max()}, outside its vocabulary of {self.tokenizer.vocab_size}; repair it"
            )
        return Documents(ids, lengths, counts)

    def _finish(self, documents: Documents) -> Documents:
        """Append EOD to each document if asked for, and make ids in the corpus's type."""
        ids, lengths = documents.ids, documents.lengths
        if self.options.append_eod:
            ids = np.insert(ids, np.cumsum(documents.num_tokens()), self.tokenizer.eos_id)
            lengths = lengths.copy()
            lengths[np.cumsum(documents.counts) - 1] += 1
        return Documents(ids.astype(self.dtype), lengths, documents.counts)


def _split_lines(content: bytes) -> list[bytes]:
    """Split into lines without their ends, which are "\\n", "\\r\\n" or "\\r", as for a file that Python opens as
    text."""
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = content.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _require_no_surrogate(text: str, key: str) -> None:
    """Raise InputError if the text holds half a character, such as JSON's "\\ud800", which UTF-8 cannot express."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"unpaired surrogate: field {key!r}, character {error.start}") from None


def _rejected_lines(rejected: dict[int, str], lines: list[bytes], as_it_is: bool) -> bytes:
    """Write JSON lines of the rejected rows {line number from 0: reason}, by line."""
    rows = ({"line": n + 1, "reason": rejected[n], "excerpt": excerpt(lines[n], as_it_is)} for n in sorted(rejected))
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
