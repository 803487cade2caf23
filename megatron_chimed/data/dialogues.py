"""Raw sources to dialogues.jsonl, the input of supervised fine-tuning: clean, redacted, without duplicates.

Every row that is read is a dialogue in the output or counted as dropped with its reason, source by source. Duplicates
are looked for across all sources, in the order in which these are given, and the first is kept. A dialogue stays whole;
its rendering to training instances comes later.
Source: paper, section on data ("redundancy and personal information are removed from all data").
"""

import functools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from megatron_chimed import __version__
from megatron_chimed.data.dedup import Deduplicator
from megatron_chimed.data.dialogue_sources import SourceFile, find_sources, read_chunks
from megatron_chimed.data.dialogue_worker import DialogueOptions, DialogueWorker, Prepared, make_deduplicators
from megatron_chimed.data.overlap import OverlapIndex, read_texts
from megatron_chimed.data.quarantine import kind_of
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_output, glob_inputs, manifest, read_json, sha256_file, sha256_json, write_json
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.tokenizer import load_tokenizer
from megatron_chimed.workers import Bar, map_in_order

MADE_BY = "tools/prepare_sft.py"


@dataclass
class Counts:
    """Of one source: rows == dialogues + the sum of dropped. malformed: of the dropped rows, those with a wrong form.

    turns, characters, tokens (None without a tokenizer), changes and redacted count what is in the output.
    """

    rows: int = 0
    dialogues: int = 0
    turns: int = 0
    characters: int = 0
    tokens: int | None = None
    malformed: int = 0
    first_malformed: str = ""
    dropped: Counter = field(default_factory=Counter)
    changes: Counter = field(default_factory=Counter)
    redacted: Counter = field(default_factory=Counter)

    def to_json(self) -> dict:
        """The counts as a JSON object."""
        return {name: dict(sorted(v.items())) if isinstance(v, Counter) else v for name, v in vars(self).items()}


def prepare_dialogues(
    sources: list[str],
    output: str | Path,
    options: DialogueOptions | None = None,
    *,
    exclude: list[str] = (),
    tokenizer_path: str | None = None,
    max_rejected_share: float = 0.01,
    workers: int = 0,
    progress: bool = True,
) -> dict:
    """Make dialogues of the sources (`find_sources`) and write four files; returns the manifest.

    output: NAME.jsonl; beside it appear NAME.rejected.jsonl (rows that were dropped, but for duplicates, with source,
    file, line, reason and excerpt), NAME.report.json and NAME.manifest.json, all when the work is done. exclude: files
    or globs of evaluation sets (`read_texts`). tokenizer_path: counts tokens. max_rejected_share: of a source's rows,
    how many may be malformed. Nothing is done when the manifest shows that inputs and settings are the same.
    Raises InputError, and leaves what was there before, when a flag or a file is at fault, too many rows of a source
    are malformed, or no dialogue is left.
    """
    options, output = options or DialogueOptions(), Path(output)
    if output.suffix != ".jsonl" or output.name.endswith(".rejected.jsonl"):
        raise InputError(f"--output {output}: expected a name that ends in .jsonl")
    if not 0 <= max_rejected_share <= 1 or workers < 0:
        raise InputError("--max-rejected-share must be from 0 to 1, --workers 0 or more")
    files, excluded = find_sources(sources), _find_excluded(exclude)
    for path in (*(file.path for file in files), *excluded):
        if output.exists() and output.samefile(path):
            raise InputError(f"--output {output}: is also an input; give another name")
    tokenizer = load_tokenizer(tokenizer_path) if tokenizer_path else None
    parents = {
        "inputs": sha256_json([[file.label, file.reader, file.name, sha256_file(file.path)] for file in files]),
        "excluded": sha256_json(sorted(map(sha256_file, excluded))),
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
        "settings": sha256_json({"version": __version__, **asdict(options)}),
    }
    if present := _find_finished(output, parents, max_rejected_share):
        return present
    index = OverlapIndex(text for path in excluded for text in read_texts(path)) if excluded else None
    counts = {file.label: Counts(tokens=0 if tokenizer else None) for file in files}
    writer = _Writer(make_deduplicators(options.dedup), counts)
    prepared = _prepare(files, DialogueWorker(options, tokenizer, index), workers, progress)
    with atomic_output(output) as good, atomic_output(_beside(output, "rejected.jsonl")) as bad:
        for file, one in prepared:
            writer.take(file, one, good, bad)
        _require_good_input({label: one.to_json() for label, one in counts.items()}, max_rejected_share)
        _beside(output, "manifest.json").unlink(missing_ok=True)  # what it describes is about to be replaced
    return _publish(output, counts, parents, {**asdict(options), "tokenizer": tokenizer_path, "excluded": excluded})


def _beside(output: Path, suffix: str) -> Path:
    """NAME.rejected.jsonl for NAME.jsonl."""
    return output.with_suffix(f".{suffix}")


def _find_excluded(patterns: list[str]) -> list[str]:
    """The files of --exclude flags. Raises InputError for one that matches nothing."""
    found = []
    for pattern in patterns:
        paths = [pattern] if Path(pattern).is_file() else list(filter(Path.is_file, map(Path, glob_inputs(pattern))))
        if not paths:
            raise InputError(f"--exclude {pattern}: no such file")
        found += map(str, paths)
    return found


def _prepare(
    files: list[SourceFile], worker: DialogueWorker, workers: int, progress: bool
) -> Iterator[tuple[SourceFile, Prepared]]:
    """What becomes of each row, in the order of the files and their rows."""
    jobs = ((file, (file.reader, chunk)) for file in files for chunk in read_chunks(file))
    with Bar(unit=" rows", disable=not progress, mininterval=0.5) as bar:
        for file, chunk in map_in_order(worker.prepare, jobs, workers):
            bar.set_postfix_str(file.label, refresh=False)
            bar.update(len(chunk))
            yield from ((file, one) for one in chunk)


class _Writer:
    """Takes what became of each row in order, drops duplicates, writes and counts."""

    def __init__(self, deduplicators: dict[str, Deduplicator], counts: dict[str, Counts]):
        self.deduplicators, self.counts = deduplicators, counts

    def take(self, file: SourceFile, one: Prepared, good: IO[str], bad: IO[str]) -> None:
        """Write one row's dialogue, or its reason; count either."""
        counts = self.counts[file.label]
        counts.rows += 1
        if one.reason:
            counts.dropped[kind_of(one.reason)] += 1
            if one.malformed:
                counts.malformed += 1
                counts.first_malformed = counts.first_malformed or f"{file.path}:{one.line}: {one.reason}"
            where = {"source": file.label, "file": file.path, "line": one.line}
            bad.write(json.dumps({**where, "reason": one.reason, "excerpt": one.excerpt}, ensure_ascii=False) + "\n")
            return
        for (name, deduplicator), signature in zip(self.deduplicators.items(), one.signatures, strict=True):
            if deduplicator.is_duplicate_signature(signature):
                counts.dropped[name] += 1
                return
        turns = tuple(Turn(role, text) for role, text in one.turns)
        row = Dialogue(f"{file.label}:{file.name}:{one.line}", file.label, turns).to_row()
        good.write(json.dumps(row, ensure_ascii=False) + "\n")
        counts.dialogues += 1
        counts.turns += len(turns)
        counts.characters += sum(len(turn.text) for turn in turns)
        counts.changes.update(one.changes)
        counts.redacted.update(one.redacted)
        if counts.tokens is not None:
            counts.tokens += one.tokens


def _require_good_input(counts: dict[str, dict], max_rejected_share: float) -> None:
    """Raise InputError if too many rows of a source are malformed, or no dialogue is left."""
    for label, one in counts.items():
        if one["malformed"] > max_rejected_share * one["rows"]:
            raise InputError(
                f"{one['malformed']} of {one['rows']} rows of the source {label!r} are malformed, above "
                f"--max-rejected-share {max_rejected_share:g}; the first: {one['first_malformed']}; mend the input or "
                "raise the share"
            )
    if not any(one["dialogues"] for one in counts.values()):
        rows = sum(one["rows"] for one in counts.values())
        dropped = sum((Counter(one["dropped"]) for one in counts.values()), Counter())
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.most_common(3))
        raise InputError(f"no dialogue is left of {rows} rows ({reasons or 'the inputs are empty'}); nothing written")


def _publish(output: Path, counts: dict[str, Counts], parents: dict, settings: dict) -> dict:
    """Write the report, then the manifest: where it is, all is whole. Returns the manifest."""
    sources = {label: one.to_json() for label, one in counts.items()}
    dropped = functools.reduce(Counter.__add__, (one.dropped for one in counts.values()), Counter())
    write_json(_beside(output, "report.json"), {"settings": settings, "sources": sources})
    written = [output, _beside(output, "rejected.jsonl"), _beside(output, "report.json")]
    content = manifest(
        made_by=MADE_BY,
        rows=sum(one.dialogues for one in counts.values()),
        sha256={path.name: sha256_file(path) for path in written},
        parents=parents,
        dropped=dict(sorted(dropped.items())),
        bytes={path.name: path.stat().st_size for path in written},
        input_rows=sum(one.rows for one in counts.values()),
        sources=sources,
        settings=settings,
    )
    write_json(_beside(output, "manifest.json"), content)
    return content


def _find_finished(output: Path, parents: dict, max_rejected_share: float) -> dict | None:
    """The manifest of whole outputs that were made of the same inputs in the same way, or None."""
    try:
        content = read_json(_beside(output, "manifest.json"))
        whole = all(output.with_name(name).stat().st_size == size for name, size in content["bytes"].items())
        if not whole or content["parents"] != parents:
            return None
        _require_good_input(content["sources"], max_rejected_share)
    except (InputError, OSError, KeyError, TypeError, AttributeError):  # none, or not one of this tool
        return None
    print(f"{output}: up to date", file=sys.stderr)
    return content


def report_table(content: dict) -> str:
    """The sources of a manifest as a table, and below it why rows were dropped."""
    total = dict.fromkeys(("rows", "dropped rows", "dialogues", "turns", "characters"), 0)
    if content["settings"]["tokenizer"]:
        total["tokens"] = 0
    lines, reasons = [f"{'source':20}" + "".join(f"{name:>14}" for name in total)], []
    for label, one in [*content["sources"].items(), ("total", total)]:
        if one is not total:
            one = {**one, "dropped rows": one["rows"] - one["dialogues"]}
            total |= {name: total[name] + one[name] for name in total}
            reasons += [f"  {label}: {number:,} {reason}" for reason, number in one["dropped"].items()]
        lines.append(f"{label:20}" + "".join(f"{one[name]:>14,}" for name in total))
    return "\n".join([*lines, *(["dropped:"] if reasons else []), *reasons])
