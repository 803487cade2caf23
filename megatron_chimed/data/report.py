"""Report of a step that makes records of raw sources: every row is in the output, or counted with its reason.

Beside an output NAME.jsonl lie NAME.rejected.jsonl (rows that were dropped, but for duplicates, with source, file,
line, reason and excerpt), NAME.report.json and, written last, NAME.manifest.json: where it is, all is whole.
"""

import functools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from megatron_chimed.data.preprocess import PreparedRow
from megatron_chimed.data.rejected import kind_of, writable
from megatron_chimed.data.source_files import SourceFile
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import manifest, sha256_file, write_json
from megatron_chimed.steps import find_up_to_date
from megatron_chimed.workers import Workers, check_workers


@dataclass
class SourceCounts:
    """Counts of one source: rows == records in the output + the sum of dropped; a subclass counts what is in the
    output.

    malformed: of the dropped rows, those with a wrong form. changes, redacted and unread_fields count what was done to
    the rows in the output, and what of them is not: fields by name.
    """

    rows: int = 0
    malformed: int = 0
    first_malformed: str = ""
    dropped: Counter = field(default_factory=Counter)
    changes: Counter = field(default_factory=Counter)
    redacted: Counter = field(default_factory=Counter)
    unread_fields: Counter = field(default_factory=Counter)

    def drop(self, file: SourceFile, one: PreparedRow, bad: IO[str]) -> None:
        """Count a row that has a reason, and write it to the file of rejected rows."""
        reason, excerpt = writable(one.reason), writable(one.excerpt)  # a reason may name a field
        self.dropped[kind_of(reason)] += 1
        if one.malformed:
            self.malformed += 1
            self.first_malformed = self.first_malformed or f"{file.path}:{one.line}: {reason}"
        where = {"source": file.label, "file": file.path, "line": one.line}
        bad.write(json.dumps({**where, "reason": reason, "excerpt": excerpt}, ensure_ascii=False) + "\n")

    def keep(self, one: PreparedRow) -> None:
        """Count what was done to a row in the output."""
        self.changes.update(one.changes)
        self.redacted.update(one.redacted)
        self.unread_fields.update(one.unread)

    def to_json(self) -> dict:
        """Return the counts as a JSON object."""
        return {name: dict(sorted(v.items())) if isinstance(v, Counter) else v for name, v in vars(self).items()}


def beside(output: Path, suffix: str) -> Path:
    """Name a file beside an output: NAME.rejected.jsonl for NAME.jsonl."""
    return output.with_suffix(f".{suffix}")


def check_flags(output: Path, inputs: Iterable[str], outputs: Iterable[Path], share: float, workers: Workers) -> None:
    """Raise InputError for a name that is none of an output, an output that is also an input, a number out of range."""
    if output.suffix != ".jsonl" or output.name.endswith(".rejected.jsonl"):
        raise InputError(f"--output {output}: expected a name that ends in .jsonl")
    check_workers(workers)
    if not 0 <= share <= 1:
        raise InputError("--max-rejected-share must be from 0 to 1")
    present = [path for path in outputs if path.exists()]
    for path in inputs:
        for mine in present:
            if mine.samefile(path):
                raise InputError(f"--output {mine}: is also an input; give another name")


def require_good_input(unit: str, counts: dict[str, dict], max_rejected_share: float) -> None:
    """Raise InputError if too many rows of a source are malformed, or no record (counted under `unit`) is left."""
    for label, one in counts.items():
        if one["malformed"] > max_rejected_share * one["rows"]:
            raise InputError(
                f"{one['malformed']} of {one['rows']} rows of the source {label!r} are malformed, above "
                f"--max-rejected-share {max_rejected_share:g}; the first: {one['first_malformed']}; mend the input or "
                "raise the share"
            )
    if not any(one[unit] for one in counts.values()):
        rows = sum(one["rows"] for one in counts.values())
        dropped = sum((Counter(one["dropped"]) for one in counts.values()), Counter())
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.most_common(3))
        kind = unit.removesuffix("s")
        raise InputError(f"no {kind} is left of {rows} rows ({reasons or 'the inputs are empty'}); nothing written")


def publish(
    output: Path,
    written: list[Path],
    counts: dict[str, SourceCounts],
    *,
    unit: str,
    made_by: str,
    parents: dict,
    settings: dict,
    encodings: dict[str, str],
    **extra: object,
) -> dict:
    """Write the report, then the manifest. written: the files of records; unit: the count of records in `counts`;
    encodings: of the inputs that are not UTF-8.

    Returns the manifest.
    """
    sources = {label: one.to_json() for label, one in counts.items()}
    dropped = functools.reduce(Counter.__add__, (one.dropped for one in counts.values()), Counter())
    write_json(beside(output, "report.json"), {"settings": settings, "sources": sources, "encodings": encodings})
    written = [*written, beside(output, "rejected.jsonl"), beside(output, "report.json")]
    content = manifest(
        made_by=made_by,
        rows=sum(one[unit] for one in sources.values()),
        sha256={path.name: sha256_file(path) for path in written},
        parents=parents,
        dropped=dict(sorted(dropped.items())),
        bytes={path.name: path.stat().st_size for path in written},
        input_rows=sum(one.rows for one in counts.values()),
        sources=sources,
        settings=settings,
        encodings=encodings,
        **extra,
    )
    write_json(beside(output, "manifest.json"), content)
    return content


def find_finished(output: Path, parents: dict, unit: str, max_rejected_share: float) -> dict | None:
    """Find the manifest of whole outputs that were made of the same inputs in the same way, or None."""

    def good(content: dict) -> bool:
        require_good_input(unit, content["sources"], max_rejected_share)
        return True

    if content := find_up_to_date(beside(output, "manifest.json"), parents, accept=good):
        print(f"{output}: up to date", file=sys.stderr)
    return content


def report_table(content: dict, columns: Sequence[str]) -> str:
    """Format the sources of a manifest as a table, and below it why rows were dropped, which fields were not read, and
    the encodings of files that are not UTF-8.

    columns: counts, that of records first.
    """
    unit = columns[0]
    total = dict.fromkeys(("rows", "dropped rows", *columns), 0)
    lines, reasons, unread = [f"{'source':20}" + "".join(f"{name:>13}" for name in total)], [], []
    for label, one in [*content["sources"].items(), ("total", total)]:
        if one is not total:
            one = {**one, "dropped rows": one["rows"] - one[unit]}
            total |= {name: total[name] + one[name] for name in total}
            reasons += [f"  {label}: {number:,} {reason}" for reason, number in one["dropped"].items()]
            unread += [f"  {label}: {number:,} {name}" for name, number in one.get("unread_fields", {}).items()]
        lines.append(f"{label:20}" + "".join(f"{one[name]:>13,}" for name in total))
    encodings = [f"  {path}: {encoding}" for path, encoding in content.get("encodings", {}).items()]
    parts = {"dropped:": reasons, "fields not read:": unread, "files that are not UTF-8:": encodings}
    return "\n".join([*lines, *(line for head, part in parts.items() if part for line in (head, *part))])
