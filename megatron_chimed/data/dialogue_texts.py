"""Read dialogues written as plain text: MC's P and D lines, MedDialog's blocks, and marks inside an instruction."""

import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from megatron_chimed import jsonl
from megatron_chimed.data.fields import leave_out, type_of
from megatron_chimed.data.sources import Fault, bounded_lines, too_long
from megatron_chimed.data.turns import Turns
from megatron_chimed.errors import InputError

NOTHING = ("", "无")  # what people type into a field that they leave empty
INLINE_MARK = re.compile(r"<\s*([A-Za-z_]{1,20})\s*>\s*[:：]")
INLINE_ROLES = {"user": "user", "human": "user", "bot": "assistant", "assistant": "assistant", "gpt": "assistant"}
MC_ROLES = {"P": "user", "D": "assistant"}
MEDDIALOG_MARK = re.compile(r"\s*(病人|患者|医生|大夫)\s*[:：]\s*(.*)", re.DOTALL)
MEDDIALOG_ROLES = {"病人": "user", "患者": "user", "医生": "assistant", "大夫": "assistant"}
MEDDIALOG_HEADINGS = ("Doctor faculty", "Description", "Dialogue", "Diagnosis and suggestions")
WISHES = ("希望获得的帮助", "希望得到的帮助", "想得到怎样的帮助")
OTHER_FIELDS = ("疾病", "患病多久", "怀孕情况", "过敏史", "药物过敏", "既往病史", "曾经治疗情况", "化验", "用药情况")
DESCRIPTION_FIELD = re.compile(rf"(病情描述|{'|'.join(WISHES + OTHER_FIELDS)})[^：:]{{0,20}}[：:](.*)")


def read_blocks(path: str | Path, begins: Callable[[str], bool], blank_ends: bool) -> Iterator[tuple[int, str | Fault]]:
    """Yield (line of its beginning, block of lines) of a text.

    begins: whether a line begins a block; blank_ends: a blank line ends one, and is in none. A byte that is no
    character becomes an unpaired surrogate; where the text is not in UTF-8, U+FFFD. Raises InputError when the
    encoding is none that is read.
    """
    start, lines, size = 1, [], 0
    for number, content in bounded_lines(path):
        line = "" if content is None else content.decode("utf-8", "surrogateescape").rstrip("\r\n")
        ends = blank_ends and content is not None and not line.strip()
        if (ends or begins(line)) and lines:
            yield start, _block(lines, size)
            lines, size = [], 0
        if ends or not (lines or line.strip() or content is None):
            continue
        if not lines:
            start = number
        size += jsonl.MAX_LINE_BYTES + 1 if content is None else len(content)
        if size <= jsonl.MAX_LINE_BYTES or not lines:
            lines.append(line)
    if lines:
        yield start, _block(lines, size)


def _block(lines: list[str], size: int) -> str | Fault:
    """Make the block of these lines; size: bytes that it has in the file."""
    return "\n".join(lines) if size <= jsonl.MAX_LINE_BYTES else too_long()


def mc_blocks(path: str | Path) -> Iterator[tuple[int, str | Fault]]:
    """Read the dialogues of an MC .dialog file: a header begins one, a blank line ends it."""
    return read_blocks(path, lambda line: line.startswith("id\t"), blank_ends=True)


def mc_turns(block: str) -> Turns:
    """Read lines ``P<tab>text<tab>label`` of the patient, ``D...`` of the doctor; header, labels and summaries are left
    out.

    A label may be missing. Raises InputError on any other line.
    """
    turns = []
    for number, line in enumerate(block.split("\n"), start=1):
        speaker, *rest = line.split("\t")
        if speaker in MC_ROLES and rest:
            if len(rest) > 1 and re.fullmatch(r"\s*\d*\s*", rest[-1]):
                leave_out(block, "label", int(bool(rest.pop().strip())))
            turns.append((MC_ROLES[speaker], " ".join(rest)))
        elif speaker.startswith("SUM") and rest:
            leave_out(block, speaker[:20], int(any(map(str.strip, rest))))
        elif speaker == "id" and number == 1 and rest:
            for name, value in zip_longest((speaker, *rest[1::2]), rest[::2], fillvalue=""):
                leave_out(block, name[:20], int(bool(value.strip())))
        else:
            raise InputError(
                f"unknown role: {speaker[:40]!r} in line {number} of the dialogue; expected P, D or SUM and a tab"
            )
    return turns


def meddialog_blocks(path: str | Path) -> Iterator[tuple[int, str | Fault]]:
    """Read the dialogues of a MedDialog raw text; each begins with ``id=``."""
    return read_blocks(path, lambda line: re.match(r"\s*id\s*=\s*\d", line) is not None, blank_ends=False)


def meddialog_turns(row: Any) -> Turns:
    """Read a raw block, or a dialogue of the processed JSON: ["病人：...", "医生：..."], also as {"utterances": [...]}.

    In a raw block the patient's description (病情描述, and 希望获得的帮助) comes first, unless the patient begins the
    dialogue with it. Raises InputError for text that no one says and for unknown roles.
    """
    if isinstance(row, str):
        return _meddialog_block(row)
    lines = row.get("utterances") if isinstance(row, dict) else row
    if not isinstance(lines, list):
        raise InputError(f"not a list: a dialogue holds {type_of(lines)}; expected a list of '病人：...'")
    turns = []
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, str):
            raise InputError(f"not a string: turn {number} holds {type_of(line)}")
        match = MEDDIALOG_MARK.fullmatch(line)
        if not match:
            raise InputError(f"unknown role: turn {number} begins with {line[:20]!r}; expected 病人： or 医生：")
        turns.append((MEDDIALOG_ROLES[match[1]], match[2]))
    return turns


def _meddialog_block(block: str) -> Turns:
    """Read the turns of a raw block."""
    sections: dict[str, list[str]] = {}
    current = sections.setdefault("", [])
    for line in block.split("\n"):
        heading = line.strip()
        if heading in MEDDIALOG_HEADINGS and heading not in sections:
            current = sections.setdefault(heading, [])
        else:
            current.append(line)
    if not re.match(r"\s*id\s*=", block):
        raise InputError("text before the first 'id='; expected a block that begins with it")
    if "Dialogue" not in sections:
        raise InputError("no line 'Dialogue'; expected one before what patient and doctor say")
    spoken: list[tuple[str, list[str]]] = []
    for line in sections["Dialogue"]:
        if match := MEDDIALOG_MARK.fullmatch(line):
            spoken.append((MEDDIALOG_ROLES[match[1]], [match[2]]))
        elif spoken:
            spoken[-1][1].append(line)
        elif line.strip():
            raise InputError(f"unknown role: the dialogue begins with {line[:20]!r}; expected 病人： or 医生：")
    turns = [(role, "\n".join(lines).strip()) for role, lines in spoken]
    _leave_out_sections(block, sections)
    values = _description(sections.get("Description", []))
    wish = next((name for name in WISHES if name in values), "")
    used = [name for name in ("病情描述", wish) if values.get("病情描述") and values.get(name, "") not in NOTHING]
    first = turns[0][1] if turns and turns[0][0] == "user" else None
    said = bool(used) and first is not None and values[used[0]] in first
    for name, text in values.items():
        leave_out(block, name, int(text not in NOTHING and (name not in used or (said and text not in first))))
    return turns if said or not used else [("user", "\n".join(values[name] for name in used)), *turns]


def _leave_out_sections(block: str, sections: dict[str, list[str]]) -> None:
    """Count what stands outside of description and dialogue: a line that begins with "id=", one of a URL, sections."""
    for line in filter(str.strip, sections[""]):
        name = re.match(r"\s*(id|http)", line)
        leave_out(block, {"id": "id", "http": "url"}[name[1]] if name else "text above the headings")
    for heading in MEDDIALOG_HEADINGS:
        if heading not in ("Description", "Dialogue"):
            leave_out(block, heading, int(any(map(str.strip, sections.get(heading, [])))))


def _description(lines: list[str]) -> dict[str, str]:
    """Read what the patient has filled in, by the form's fields; what stands in front of them is "Description"."""
    fields: dict[str, list[str]] = {}
    name = "Description"
    for line in lines:
        if match := DESCRIPTION_FIELD.fullmatch(line.strip()):
            name, line = match[1], match[2]
        fields.setdefault(name, []).append(line.strip())
    return {name: "\n".join(filter(None, value)) for name, value in fields.items()}


def is_inline(text: str) -> bool:
    """Whether a text is a dialogue with marks: it begins with ``<user>:`` or ``<bot>:``."""
    match = INLINE_MARK.match(text.lstrip())
    return match is not None and match[1].lower() in INLINE_ROLES


def inline_turns(text: str) -> Turns:
    """Read the turns of ``<user>: ... <bot>: ... <user>: ...``; text before the first mark is the user's.

    Without a mark there are none.

    Raises InputError for a mark with another role.
    """
    before, *parts = INLINE_MARK.split(text)
    if not parts:
        return []
    turns = [("user", before)] if before.strip() else []
    for name, words in zip(parts[0::2], parts[1::2], strict=True):
        if name.lower() not in INLINE_ROLES:
            raise InputError(f"unknown role: <{name}> inside the instruction; known: {', '.join(INLINE_ROLES)}")
        turns.append((INLINE_ROLES[name.lower()], words))
    return turns
