"""Show a packed row: its segments as text, with boundaries and targets marked, for terminal or HTML.

Where colours are not to be had, ``<BOS>``, ``<EOS>`` and the names of the template's tokens stand for boundary ids, as
around a system turn or thinking, and « » enclose what is to be learnt.
What a text holds can disturb neither: control characters are spelled out, and HTML is escaped.
"""

import html
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import Tokenizer, load_tokenizer

RESET = "\x1b[0m"
BOLD, DIM = "\x1b[1m", "\x1b[2m"
COLOURS = {(False, False): "", (False, True): "\x1b[32m", (True, False): "\x1b[44m", (True, True): "\x1b[30;42m"}
PAGE = """<!DOCTYPE html>
<html lang="zh"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font-family: sans-serif; line-height: 1.6; max-width: 60em; margin: 2em auto; padding: 0 1em }}
pre {{ font-family: inherit; white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid #ccc; margin: 0;
  padding-left: 1em }}
h2 {{ font-size: 1em }} .learnt {{ background: #c8f0c8 }} .boundary {{ color: #fff; background: #3458a4;
  border-radius: 3px; padding: 0 2px }} .boundary.learnt {{ background: #1c7c2c }} .padding {{ color: #888 }}
</style></head><body>
<h1>{title}</h1>
<p><span class="learnt">to be learnt</span> <span class="boundary">boundary id</span>
<span class="boundary learnt">boundary id to be learnt</span></p>
{body}
</body></html>
"""


class Run(NamedTuple):
    """Run of tokens that are alike, as text. boundary: one id of the template's; learnt: the loss is on them."""

    text: str
    boundary: bool
    learnt: bool


class Segment(NamedTuple):
    """title: number, tokens, and whatever the dataset knows of the segment; runs: its text in order."""

    title: str
    runs: list[Run]


def packing_tokenizer(packed: PackedRows, path: str | None = None) -> Tokenizer:
    """Load the tokenizer that rows were packed with: the one at `path`, by default where it was then.

    Raises InputError if it is not there, or is another.
    """
    known: Any = packed.manifest.get("tokenizer")
    if not isinstance(known, dict):
        raise InputError(f"{packed.folder}: its manifest names no tokenizer; pack again")
    tokenizer = load_tokenizer(path or str(known.get("path")))
    if tokenizer.fingerprint != known.get("fingerprint"):
        raise InputError(f"{path or known.get('path')}: not the tokenizer that {packed.folder} was packed with")
    return tokenizer


def read_row(packed: PackedRows, row: int, tokenizer: Tokenizer) -> tuple[list[Segment], int]:
    """Read the segments of a row, and its tokens of padding. Raises InputError for a row that is not there."""
    if not 0 <= row < len(packed):
        raise InputError(f"row {row} of {packed.folder}: it has the rows 0 to {len(packed) - 1}")
    segments, filled, names = [], 0, boundary_names(packed, tokenizer)
    for place, number in enumerate(packed.segments(row)):
        start, end = (int(bound) for bound in packed.segment_offsets[number : number + 2])
        tokens, learnt = packed.tokens[start:end], packed.loss_mask[start:end] != 0
        title = f"segment {place}: {end - start} tokens, {int(learnt.sum())} to be learnt"
        if "segment_dialogue" in packed.arrays:
            title += f", dialogue {int(packed.arrays['segment_dialogue'][number])}"
        if "segment_source" in packed.arrays:
            title += f", source {packed.sources[packed.arrays['segment_source'][number]]}"
        segments.append(Segment(title, list(_runs(tokens, learnt, tokenizer, names))))
        filled += end - start
    return segments, packed.sequence_length - filled


def boundary_names(packed: PackedRows, tokenizer: Tokenizer) -> dict[int, str]:
    """Name the ids that the template puts in by position: BOS, EOS and its tokens. Raises InputError."""
    template = Template.from_row(packed.manifest.get("template"), f"{packed.folder}: the template of its manifest")
    tokens = [slot.value for slot in template.all_slots if slot.kind == "token"]
    names = {tokenizer.bos_id: "<BOS>", tokenizer.eos_id: "<EOS>"}
    names |= {tokenizer.token_to_id(token): token for token in tokens}
    return {number: name for number, name in names.items() if number is not None}


def _runs(tokens: np.ndarray, learnt: np.ndarray, tokenizer: Tokenizer, names: dict[int, str]) -> Iterator[Run]:
    """Cut tokens [n] at boundary ids, which names has, and where learnt [n] changes."""
    boundary = np.isin(tokens, list(names))
    kinds = np.where(boundary, np.arange(len(tokens)) + 2, learnt)  # each boundary id is a run of its own
    starts = np.flatnonzero(np.diff(kinds, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        is_boundary = bool(boundary[start])
        text = names[int(tokens[start])] if is_boundary else tokenizer.decode(tokens[start:end])
        yield Run(text, is_boundary, bool(learnt[start]))


def visible(text: str) -> str:
    """Spell out the characters of a text that steer a terminal or the direction of writing, as ``\\x1b``."""
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) not in ("Cc", "Cf") else ascii(one)[1:-1] for one in text
    )


def to_terminal(segments: list[Segment], padding: int, colour: bool) -> str:
    """Format a row as lines, in ANSI colours or with marks."""
    lines = []
    for segment in segments:
        lines.append(f"{BOLD}{visible(segment.title)}{RESET}" if colour else f"--- {visible(segment.title)}")
        lines.append("".join(map(_in_colour, segment.runs)) if colour else _with_marks(segment.runs))
    if padding:
        lines.append(f"{DIM}padding: {padding} tokens{RESET}" if colour else f"--- padding: {padding} tokens")
    return "\n".join(lines)


def _in_colour(run: Run) -> str:
    code = COLOURS[run.boundary, run.learnt]
    # A colour does not survive the end of a line in every pager.
    return "\n".join(f"{code}{line}{RESET}" if code and line else line for line in visible(run.text).split("\n"))


def _with_marks(runs: list[Run]) -> str:
    text, inside = "", False
    for run in runs:
        if run.learnt != inside:
            text += "«" if run.learnt else "»"
        text, inside = text + visible(run.text), run.learnt
    return text + ("»" if inside else "")


def to_html(segments: list[Segment], padding: int, title: str) -> str:
    """Format a row as one HTML page that needs nothing else."""
    body = []
    for segment in segments:
        spans = []
        for run in segment.runs:
            names = " ".join(name for name in ("boundary", "learnt") if getattr(run, name))
            text = html.escape(visible(run.text))
            spans.append(f'<span class="{names}">{text}</span>' if names else text)
        body.append(f"<h2>{html.escape(visible(segment.title))}</h2>\n<pre>\n{''.join(spans)}</pre>")
    if padding:
        body.append(f'<p class="padding">padding: {padding} tokens</p>')
    return PAGE.format(title=html.escape(visible(title)), body="\n".join(body))
