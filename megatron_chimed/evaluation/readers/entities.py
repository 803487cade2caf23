"""Annotated sentences: CCKS-2019's JSON lines, and the columns in which ChiMST's terms are annotated.

A path is ``TEST,EXAMPLES``: two files or globs, the first to be answered, the second to draw the five examples from.
"""

from collections.abc import Callable, Iterator
from typing import Any

from megatron_chimed.data.dialogue_texts import read_blocks
from megatron_chimed.data.sources import Fault
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.entities import Mention
from megatron_chimed.evaluation.readers.items import Loaded, load
from megatron_chimed.jsonl import expand, parse_line, read_lines


def read_ccks2019(paths: str) -> dict[str, Loaded]:
    """{"test", "fewshot"} of rows {"originalText", "entities": [{"label_type", "start_pos", "end_pos"}]}, one a line.

    Positions count characters from 0, end_pos is exclusive; "overlap" is passed over. A file may begin with a
    byte-order mark, and end in .txt, .json or .jsonl, as the published ones do. Raises InputError.
    """
    return _read_both(paths, _json_rows, _of_ccks)


def read_columns(paths: str) -> dict[str, Loaded]:
    """{"test", "fewshot"} of a text with a token and its tag on each line and a blank line between sentences.

    Columns are parted by white space; the first is the token (a character or a word), the last the tag: O, or a prefix
    of BIO, BIOES or BMES and a type, ``B-疾病`` or ``B_疾病``. Raises InputError.
    """
    return _read_both(paths, lambda path: read_blocks(path, lambda line: False, blank_ends=True), _of_columns)


def _read_both(paths: str, rows: Callable, read: Callable[[Any], dict]) -> dict[str, Loaded]:
    """Both halves of ``TEST,EXAMPLES``, with the types of all their entities in every item."""
    patterns = [part.strip() for part in paths.split(",")]
    if len(patterns) != 2:
        raise InputError(
            f"{paths}: expected two files or globs, TEST,EXAMPLES (the five examples come from the second)"
        )
    loaded = {}
    for split, pattern in zip(("test", "fewshot"), patterns, strict=True):
        located = ((f"{path}:{line}", row) for path in expand([pattern]) for line, row in rows(path))
        loaded[split] = load(located, read)
    every = (mention["type"] for one in loaded.values() for item in one.items for mention in item["mentions"])
    types = sorted(set(every))
    for one in loaded.values():
        for item in one.items:
            item["types"] = types
    return loaded


def _json_rows(path: str) -> Iterator[tuple[int, Any]]:
    """(line, row or Fault) of JSON lines in a file of any name."""
    for number, line in read_lines(path):
        if line.strip():
            try:
                yield number, parse_line(line)
            except InputError as error:
                yield number, Fault(str(error), line)


def _of_ccks(row: dict) -> dict:
    """An item of a row. Raises InputError with the reason."""
    text, entities = row.get("originalText"), row.get("entities")
    if not isinstance(text, str) or not text.strip() or not isinstance(entities, list):
        raise InputError("expected fields originalText (a text) and entities (a list)")
    mentions = []
    for entity in entities:
        if not isinstance(entity, dict) or not isinstance(entity.get("label_type"), str):
            raise InputError(f"entity {entity!r} has no label_type"[:200])
        start, end = entity.get("start_pos"), entity.get("end_pos")
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise InputError(f"entity from {start!r} to {end!r} lies outside a text of {len(text)} characters")
        mentions.append((entity["label_type"], start, end))
    return _item(text, mentions)


def _of_columns(block: str) -> dict:
    """An item of a sentence's lines. Raises InputError with the reason."""
    text, mentions, open_type, start = "", [], None, 0
    for number, line in enumerate(block.split("\n"), start=1):
        columns = line.split()
        if len(columns) < 2:
            raise InputError(f"line {number} of the sentence has one column; expected a token and its tag")
        token, prefix, kind = columns[0], columns[-1][0], columns[-1][2:]
        if columns[-1] != "O" and (prefix not in "BIMES" or columns[-1][1:2] not in ("-", "_") or not kind):
            raise InputError(f"tag {columns[-1]!r} in line {number}; expected O, or B, I, M, E or S with - and a type")
        begins = prefix in "BS" or kind != open_type
        if open_type and begins:
            mentions.append((open_type, start, len(text)))
        if columns[-1] == "O":
            open_type = None
        elif begins:
            open_type, start = kind, len(text)
        text += token
    if open_type:
        mentions.append((open_type, start, len(text)))
    return _item(text, mentions)


def _item(text: str, spans: list[tuple[str, int, int]]) -> dict:
    """{"text", "mentions": [{"type", "text", "start", "end"}]}. Line breaks become spaces: an entity is a line of an
    answer."""
    text = text.translate({ord(end): " " for end in "\r\n\u2028\u2029\x0b\x0c\x85\x1c\x1d\x1e"})
    mentions = []
    for kind, start, end in spans:
        while start < end and text[start].isspace():  # an answer's spaces at the ends are no part of an entity
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start < end:
            mentions.append(Mention(kind.strip(), text[start:end], start, end)._asdict())
    return {"text": text, "mentions": mentions}
