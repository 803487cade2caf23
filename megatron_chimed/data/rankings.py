"""Make ranked.jsonl of raw sources, the input of the reward model: clean, redacted, split by question.

Every row that is read is a group in an output or counted as dropped with its reason, source by source. Two groups with
one question are not merged: nobody has compared the answers of one with those of the other. The first is kept, in the
order in which the sources are given. With dedup "none" all are kept, and those of one question stay in one part.
Source: paper, section on data ("redundancy and personal information are removed from all data"; 3,800, 100 and 100
instances to train, validate and test).
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from megatron_chimed import __version__
from megatron_chimed.data.dedup import Deduplicator, make_deduplicators
from megatron_chimed.data.encodings import other_encodings
from megatron_chimed.data.ranking_readers import READERS, detect_reader
from megatron_chimed.data.ranking_worker import PreparedGroup, RankingOptions, RankingWorker
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
from megatron_chimed.data.splits import PARTS, assign_parts, parse_split
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_output, read_json, sha256_file, sha256_json
from megatron_chimed.records import RankedGroup, Turn
from megatron_chimed.workers import Workers

MADE_BY = "tools/prepare_rewards.py"
UNIT = "groups"  # by which the report counts what is in the output
LEFT_OVER = "left over by the split"


@dataclass
class Counts(SourceCounts):
    """Counts of one source. answers, characters (of questions and answers) count what is in the output."""

    groups: int = 0
    answers: int = 0
    characters: int = 0


def prepare_rankings(
    sources: list[str],
    output: str | Path,
    options: RankingOptions | None = None,
    *,
    split: str | None = None,
    seed: int = 1234,
    max_rejected_share: float = 0.01,
    workers: Workers = 0,
    progress: bool = True,
) -> dict:
    """Make groups of the sources (`find_sources`) and write them with a report; returns the manifest.

    They are held in memory meanwhile. output: NAME.jsonl. split: None, or as `parse_split` takes it: then
    NAME.train.jsonl, NAME.valid.jsonl and NAME.test.jsonl appear in its place, of which no two share a question. Beside
    them appear NAME.rejected.jsonl, NAME.report.json and NAME.manifest.json. max_rejected_share: of a source's rows,
    how many may be malformed. Nothing is done when the manifest shows that inputs and settings are the same.
    Raises InputError, and leaves what was there before, when a flag or a file is at fault, too many rows of a source
    are malformed, no group is left, or the split does not fit.
    """
    options, output = options or RankingOptions(), Path(output)
    cut = parse_split(split) if split else None
    files = find_sources(sources, READERS, detect_reader)
    outputs = [beside(output, f"{part}.jsonl") for part in PARTS] if cut else [output]
    check_flags(output, [file.path for file in files], outputs, max_rejected_share, workers)
    settings = {**asdict(options), "split": split, "seed": seed if split else None}
    parents = {
        "inputs": sha256_json([[file.label, file.reader, file.name, sha256_file(file.path)] for file in files]),
        "settings": sha256_json({"version": __version__, **settings}),
    }
    if present := find_finished(output, parents, UNIT, max_rejected_share):
        return present
    counts = {file.label: Counts() for file in files}
    worker, kept = RankingWorker(options), _Kept(make_deduplicators(options.dedup), counts)
    with contextlib.ExitStack() as stack:
        bad = stack.enter_context(atomic_output(beside(output, "rejected.jsonl")))
        for file, one in prepare_rows(files, READERS, worker.prepare, workers=workers, progress=progress):
            kept.take(file, one, bad)
        require_good_input(UNIT, {label: one.to_json() for label, one in counts.items()}, max_rejected_share)
        parts = assign_parts((one.question for _, one in kept.groups), cut, seed) if cut else None
        written = [stack.enter_context(atomic_output(path)) for path in outputs]
        sizes = kept.write(dict(zip(PARTS if cut else (None,), written, strict=True)), parts)
        _remove_old(output, outputs)
    account = {"parents": parents, "settings": settings, "encodings": other_encodings(file.path for file in files)}
    account |= {"parts": sizes} if cut else {}
    return publish(output, outputs, counts, unit=UNIT, made_by=MADE_BY, **account)


def _remove_old(output: Path, outputs: list[Path]) -> None:
    """Remove the manifest of an earlier run, and what it lists of files that this run does not write again."""
    with contextlib.suppress(InputError, OSError, KeyError, TypeError):
        names = set(read_json(beside(output, "manifest.json"))["sha256"])
        for path in (output, *(beside(output, f"{part}.jsonl") for part in PARTS)):
            if path.name in names and path not in outputs:
                path.unlink(missing_ok=True)
    beside(output, "manifest.json").unlink(missing_ok=True)  # what it describes is about to be replaced


class _Kept:
    """Collector of prepared rows, in order: drops questions that were seen before, holds the groups, writes them."""

    def __init__(self, deduplicators: dict[str, Deduplicator], counts: dict[str, Counts]):
        self.deduplicators, self.counts = deduplicators, counts
        self.groups: list[tuple[SourceFile, PreparedGroup]] = []

    def take(self, file: SourceFile, one: PreparedGroup, bad: IO[str]) -> None:
        """Keep one row's group, or write its reason; count either."""
        counts = self.counts[file.label]
        counts.rows += 1
        if one.reason:
            counts.drop(file, one, bad)
            return
        for (name, deduplicator), signature in zip(self.deduplicators.items(), one.signatures, strict=True):
            if deduplicator.is_duplicate_signature(signature):
                counts.dropped[name] += 1
                return
        self.groups.append((file, one))
        counts.groups += 1

    def write(self, targets: dict[str | None, IO[str]], parts: dict[bytes, str] | None) -> dict[str, int]:
        """Write each group to the target of its part (None without a split). Returns the groups of each part."""
        sizes = dict.fromkeys(targets, 0)
        for file, one in self.groups:
            counts = self.counts[file.label]
            part = parts.get(one.question, LEFT_OVER) if parts else None
            if part == LEFT_OVER:
                counts.groups -= 1
                counts.dropped[LEFT_OVER] += 1
                continue
            turns = tuple(Turn(*turn) for turn in one.turns)
            name = f"{file.label}:{file.name}:{one.line}"
            row = RankedGroup(name, file.label, turns, one.responses, one.preference_ranks).to_row()
            targets[part].write(json.dumps(row, ensure_ascii=False) + "\n")
            sizes[part] += 1
            texts = [text for text in one.responses if text is not None]
            counts.answers += len(texts)
            counts.characters += sum(map(len, texts)) + sum(len(turn.text) for turn in turns)
            counts.keep(one)
        return sizes


def format_ranking_report(content: dict) -> str:
    """Format the sources of a manifest as a table, below it why rows were dropped, and the sizes of the parts."""
    parts = [f"{part:6}{size:>8,} groups" for part, size in content.get("parts", {}).items()]
    return "\n".join([report_table(content, (UNIT, "answers", "characters")), *parts])
