"""Make dialogues.jsonl of raw sources, the input of supervised fine-tuning: clean, redacted, without duplicates.

Every row that is read is a dialogue in the output or counted as dropped with its reason, source by source. Duplicates
are looked for across all sources, in the order in which these are given, and the first is kept. A dialogue stays whole;
its rendering to training instances comes later.
Source: paper, section on data ("redundancy and personal information are removed from all data").
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from megatron_chimed import __version__
from megatron_chimed.data.decontamination import OverlapIndex, evaluation_texts
from megatron_chimed.data.dedup import Deduplicator, make_deduplicators
from megatron_chimed.data.dialogue_readers import READERS
from megatron_chimed.data.dialogue_worker import DialogueOptions, DialogueWorker, Prepared
from megatron_chimed.data.encodings import other_encodings
from megatron_chimed.data.report import (
    SourceCounts,
    beside,
    check_flags,
    find_finished,
    publish,
    report_table,
    require_good_input,
)
from megatron_chimed.data.source_files import SourceFile, find_sources, prepare_rows
from megatron_chimed.data.turns import texts_of
from megatron_chimed.jsonl import atomic_output, expand, sha256_file, sha256_json
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.text.bulk import alone_because, guarded
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.workers import Workers

MADE_BY = "tools/prepare_sft.py"
UNIT = "dialogues"  # by which the report counts what is in the output


@dataclass
class Counts(SourceCounts):
    """Counts of one source. turns, characters, tokens (None without a tokenizer) count what is in the output: system
    turns and thinking too."""

    dialogues: int = 0
    turns: int = 0
    characters: int = 0
    tokens: int | None = None


def prepare_dialogues(
    sources: list[str],
    output: str | Path,
    options: DialogueOptions | None = None,
    *,
    exclude: list[str] = (),
    tokenizer_path: str | None = None,
    max_rejected_share: float = 0.01,
    workers: Workers = 0,
    progress: bool = True,
) -> dict:
    """Make dialogues of the sources (`find_sources`) and write four files; returns the manifest.

    output: NAME.jsonl; beside it appear NAME.rejected.jsonl (rows that were dropped, but for duplicates, with source,
    file, line, reason and excerpt), NAME.report.json and NAME.manifest.json, all when the work is done. exclude: files
    or globs of evaluation sets (`evaluation_texts`). tokenizer_path: counts tokens. max_rejected_share: of a source's
    rows, how many may be malformed. Nothing is done when the manifest shows that inputs and settings are the same.
    Raises InputError, and leaves what was there before, when a flag or a file is at fault, too many rows of a source
    are malformed, or no dialogue is left.
    """
    options, output = options or DialogueOptions(), Path(output)
    files, excluded = find_sources(sources, READERS), expand(exclude, "--exclude ")
    inputs = (*(file.path for file in files), *excluded)
    check_flags(output, inputs, [output], max_rejected_share, workers)
    tokenizer = load_tokenizer(tokenizer_path) if tokenizer_path else None
    parents = {
        "inputs": sha256_json([[file.label, file.reader, file.name, sha256_file(file.path)] for file in files]),
        "excluded": sha256_json(sorted(map(sha256_file, excluded))),
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
        "settings": sha256_json({"version": __version__, **asdict(options)}),
    }
    if present := find_finished(output, parents, UNIT, max_rejected_share):
        return present
    worker = DialogueWorker(options, tokenizer, OverlapIndex(evaluation_texts(excluded)) if excluded else None)

    def write(difference: str | None) -> tuple[dict[str, Counts], dict[str, str]]:
        return _write(files, output, worker, max_rejected_share, workers, progress), alone_because(difference)

    counts, alone = guarded(write)
    settings = {**asdict(options), "tokenizer": tokenizer_path, "excluded": excluded}
    account = {"parents": parents, "settings": settings, "encodings": other_encodings(inputs)}
    account |= {"tokenizer": alone} if alone else {}
    return publish(output, [output], counts, unit=UNIT, made_by=MADE_BY, **account)


def _write(
    files: list[SourceFile],
    output: Path,
    worker: DialogueWorker,
    max_rejected_share: float,
    workers: Workers,
    progress: bool,
) -> dict[str, Counts]:
    """Write the dialogues and the rejected rows; what was counted of each source."""
    options, tokenizer = worker.options, worker.tokenizer
    counts = {file.label: Counts(tokens=0 if tokenizer else None) for file in files}
    writer = _Writer(make_deduplicators(options.dedup), counts)
    with atomic_output(output) as good, atomic_output(beside(output, "rejected.jsonl")) as bad:
        for file, one in prepare_rows(files, READERS, worker.prepare, workers=workers, progress=progress):
            writer.take(file, one, good, bad)
        require_good_input(UNIT, {label: one.to_json() for label, one in counts.items()}, max_rejected_share)
        beside(output, "manifest.json").unlink(missing_ok=True)  # what it describes is about to be replaced
    return counts


class _Writer:
    """Writer of prepared rows, in order: drops duplicates, writes and counts."""

    def __init__(self, deduplicators: dict[str, Deduplicator], counts: dict[str, Counts]):
        self.deduplicators, self.counts = deduplicators, counts

    def take(self, file: SourceFile, one: Prepared, good: IO[str], bad: IO[str]) -> None:
        """Write one row's dialogue, or its reason; count either."""
        counts = self.counts[file.label]
        counts.rows += 1
        if one.reason:
            counts.drop(file, one, bad)
            return
        for (name, deduplicator), signature in zip(self.deduplicators.items(), one.signatures, strict=True):
            if deduplicator.is_duplicate_signature(signature):
                counts.dropped[name] += 1
                return
        turns = tuple(Turn(*turn) for turn in one.turns)
        row = Dialogue(f"{file.label}:{file.name}:{one.line}", file.label, turns).to_row()
        good.write(json.dumps(row, ensure_ascii=False) + "\n")
        counts.dialogues += 1
        counts.turns += len(turns)
        counts.characters += sum(map(len, texts_of(one.turns)))
        counts.keep(one)
        if counts.tokens is not None:
            counts.tokens += one.tokens


def format_dialogue_report(content: dict) -> str:
    """Format the sources of a manifest as a table, and below it why rows were dropped."""
    return report_table(
        content, (UNIT, "turns", "characters", *(["tokens"] if content["settings"]["tokenizer"] else []))
    )
