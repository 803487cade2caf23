"""Make documents of rows of raw sources for the corpus builder, one ``{"text": ...}`` a line."""

import collections
import json
import string
from pathlib import Path

from tqdm import tqdm

from megatron_chimed.data.encodings import other_encodings
from megatron_chimed.data.sources import Fault, fill_template, read_rows
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_output


def make_documents(inputs: list[str], template: str, output: str | Path, max_rejected_share: float = 0.01) -> dict:
    """Write a document for each row of the inputs, and OUTPUT.rejected.jsonl with file, line and reason of the others.

    Returns {"documents": n, "rejected": {reason: n}, "encodings": {file that is not UTF-8: its encoding}}. Raises
    InputError, and writes nothing, when the template names no field, a file cannot be read, nothing is left, or more
    than `max_rejected_share` of the rows are bad.
    """
    _check_template(template)
    reasons: collections.Counter = collections.Counter()
    count, first = 0, None
    with (
        atomic_output(output) as documents,
        atomic_output(f"{output}.rejected.jsonl") as rejected,
        tqdm(unit=" rows", mininterval=0.5) as bar,
    ):
        for path in inputs:
            for number, row in read_rows(path):
                try:
                    if isinstance(row, Fault):
                        raise InputError(row.reason)
                    documents.write(json.dumps({"text": fill_template(template, row)}, ensure_ascii=False) + "\n")
                    count += 1
                except InputError as error:
                    first = first or f"{path}:{number}: {error}"
                    reasons[str(error).partition(" (")[0]] += 1
                    line = {"file": str(path), "line": number, "reason": str(error)}
                    rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
                bar.update()
        bad = sum(reasons.values())
        if bad > max_rejected_share * (bad + count):
            raise InputError(
                f"{bad} of {bad + count} rows are bad, above --max-rejected-share {max_rejected_share:g}; the first: "
                f"{first}; mend the input or raise the share"
            )
        if not count:
            raise InputError(f"no rows in {', '.join(map(str, inputs))}; nothing written")
    return {"documents": count, "rejected": dict(reasons), "encodings": other_encodings(inputs)}


def _check_template(template: str) -> None:
    """Raise InputError unless the template is text with fields such as {answer}."""
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise InputError(f"--template {template!r}: {error}; write a field as {{name}} and a brace as {{{{") from None
    for _, name, form, conversion in fields:
        if form or conversion:
            raise InputError(f"--template {template!r}: field {name!r} is taken as it is; write it as {{{name}}}")
    if not fields or not all(name.isidentifier() for _, name, _, _ in fields):
        raise InputError(f"--template {template!r}: name the fields that make a document, such as '{{ask}} {{answer}}'")
