"""A batch of lines with dialogues to the tokens of its segments. It runs in worker processes."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from megatron_chimed.datasets.instances import fit, make_instances
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import parse_line, read_lines
from megatron_chimed.records import Dialogue
from megatron_chimed.template import Exchange, Renderer

BATCH_BYTES = 1 << 20


class Batch(NamedTuple):
    """Lines of an input file; number: of the first one, from 1; dialogue: how many dialogues come before it."""

    path: str
    number: int
    lines: list[bytes]
    dialogue: int


class Part(NamedTuple):
    """What a batch becomes: T tokens in K segments, from D dialogues.

    tokens [T]; loss_mask [T] uint8; lengths [K] int32; dialogues [K] int64: of all dialogues of the input, from 0;
    sources [K] int32: numbers in source_names; source_names: those of the batch, as they come; counts: see `fit`;
    num_dialogues: D; num_bytes: of the lines.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    dialogues: np.ndarray
    sources: np.ndarray
    source_names: list[str]
    counts: Counter
    num_dialogues: int
    num_bytes: int


class PartMaker:
    """Renders batches. It is sent to the worker processes."""

    def __init__(self, renderer: Renderer, sequence_length: int, mode: str):
        self.renderer, self.sequence_length, self.mode = renderer, sequence_length, mode
        self.dtype = np.uint16 if renderer.tokenizer.vocab_size <= 1 << 16 else np.uint32

    def __call__(self, batch: Batch) -> Part:
        """The part of a batch. Raises InputError as ``file:line: reason``."""
        located = [(batch.number + place, line) for place, line in enumerate(batch.lines) if line.strip()]
        dialogues = [_parse(batch.path, number, line) for number, line in located]
        rendered, owners, counts = [], [], Counter()
        for owner, exchanges in enumerate(self._encode(batch.path, located, dialogues)):
            for instance in make_instances(exchanges, self.mode):
                one = fit(instance, self.sequence_length, self.renderer, counts)
                if one is not None:
                    rendered.append(one)
                    owners.append(owner)
        names = list(dict.fromkeys(dialogue.source for dialogue in dialogues))
        owners = np.array(owners, np.int64)
        source_of = np.array([names.index(dialogue.source) for dialogue in dialogues], np.int32)
        return Part(
            np.concatenate([np.zeros(0, np.int32), *(one.tokens for one in rendered)]).astype(self.dtype),
            np.concatenate([np.zeros(0, np.uint8), *(one.loss_mask for one in rendered)]),
            np.array([len(one.tokens) for one in rendered], np.int32),
            owners + batch.dialogue,
            source_of[owners],
            names,
            counts,
            len(dialogues),
            sum(map(len, batch.lines)),
        )

    def _encode(self, path: str, located: list, dialogues: list[Dialogue]) -> list[list[Exchange]]:
        """The exchanges of all dialogues; when one cannot be encoded, its line is found."""
        try:
            return self.renderer.encode_exchanges([dialogue.turns for dialogue in dialogues])
        except InputError:
            for (number, _), dialogue in zip(located, dialogues, strict=True):
                with _located(path, number):
                    self.renderer.encode_exchanges([dialogue.turns])
            raise


@contextlib.contextmanager
def _located(path: str, number: int) -> Iterator[None]:
    """Put file and line in front of an InputError's text."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}:{number}: {error}") from None


def _parse(path: str, number: int, line: bytes) -> Dialogue:
    with _located(path, number):
        return Dialogue.from_row(parse_line(line))


def cut_into_batches(inputs: list[str], digests: list["hashlib._Hash"]) -> Iterator[Batch]:
    """Batches of some BATCH_BYTES of whole lines. digests: one for each input, fed as in `digest_input`.

    Raises InputError if there is no such file, or a .gz is damaged.
    """
    dialogue = 0
    for path, digest in zip(inputs, digests, strict=True):
        first, lines, size = 1, [], 0
        for number, line in read_lines(path):
            digest.update(line)
            lines.append(line)
            size += len(line)
            if size >= BATCH_BYTES:
                yield Batch(path, first, lines, dialogue)
                dialogue += sum(1 for one in lines if one.strip())
                first, lines, size = number + 1, [], 0
        if lines:
            yield Batch(path, first, lines, dialogue)
            dialogue += sum(1 for one in lines if one.strip())


def digest_input(path: str) -> str:
    """Hexadecimal SHA-256 of an input's content, for a .gz of what is in it. Raises InputError."""
    digest = hashlib.sha256()
    for _, line in read_lines(path):
        digest.update(line)
    return digest.hexdigest()
