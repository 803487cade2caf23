"""Damaged sources: dialogues with a full account of every row, or one line and nothing written. Never a crash."""

import json
import random

import pytest
from support.mutations import BYTE_KINDS, THOROUGH, mutate_bytes
from support.sft_sources import (
    FORMS,
    NAMES,
    check_report,
    content_of,
    make_dialogues,
    prepare,
    read_lines,
    write_source,
)

from megatron_chimed import jsonl
from megatron_chimed.errors import InputError, one_line

pytestmark = pytest.mark.slow
NUM_MUTANTS, NUM_OF_FORM = (1000, 1000) if THOROUGH else (80, 30)  # of each format, and of each of its forms
TOKENS = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n", b'"', b"\\", b"\t", b",", b":", b"{", b"}"]
TOKENS += [b"[", b"]", b"null", b"NaN", b"1e999", b"\\ud800", b"\\u0000", b"[" * 3000, b"9" * 5000, b"</s>"]
TOKENS += [b"id=1\n", b"Dialogue\n", b"id\t1\n", b"P\t", b"SUM1\n", b"<nurse>: ", b"<user>: ", b"<bot>:", b"<think>"]
TOKENS += [mark.encode() for mark in "\u2028\x85\u200b\ufeff"] + [
    "医生：".encode(),
    "护士：\n".encode(),
    b"\xed\xa0\x80",
]
TOKENS += ["，医生".encode("gb18030"), "胃炎".encode("utf-16")]
VALUES = [
    None,
    True,
    0,
    -1.5,
    10**300,
    "",
    " ",
    "\0",
    "\ufffd",
    "a" * 9000,
    [],
    {},
    [[]],
    [None],
    {"text": "a"},
    "</s>",
]
VALUES += ["[bot]:", "\x1b[2J", "１３８" * 9, "\ud800", "以上是我对“胃炎”这个问题的建议，谢谢！"]
ROLES = ["nurse", "", "User", "system", "tool", "护士", "gpt", "human", "D", "P"]
FIELDS = ["instruction", "input", "output", "from", "value", "conversations", "answers", "adopted", "answer", "title"]
FIELDS += ["history", "role", "content", "messages", "conversation", "human", "query", "question", "Complex_CoT"]
FIELDS += [
    "Question",
    "Response",
    "completion",
    "system",
    "tools",
    "question_content",
    "prompt",
    "response",
    "Insult",
    "ask",
    "id",
]


KINDS = [*BYTE_KINDS, "field", "role", "lines", "encoding", "ends", "huge"]


def mutate(draw, content):
    """One of the ways in which a file goes wrong."""
    kind = draw.choice(KINDS)
    if kind in BYTE_KINDS:
        return mutate_bytes(draw, kind, content, TOKENS)
    place = draw.randrange(len(content) + 1)
    if kind == "field":  # a value of another type, behind one of the keys
        key = f'"{draw.choice(FIELDS)}": '.encode()
        found = content.find(key, place) if content.find(key, place) >= 0 else content.find(key)
        value = json.dumps(draw.choice(VALUES)).encode()
        return content if found < 0 else content[: found + len(key)] + value + b', "x": ' + content[found + len(key) :]
    if kind == "role":
        old = draw.choice(["human", "gpt", "user", "bot", "病人", "医生", "\nP", "\nD"]).encode()
        return content.replace(old, draw.choice(ROLES).encode(), draw.choice([1, -1]))
    if kind == "lines":
        lines = content.split(b"\n")
        draw.shuffle(lines)
        return b"\n".join(lines[: draw.randint(1, len(lines))] * draw.choice([1, 2]))
    if kind == "encoding":
        half = content[:place].decode(errors="replace").encode(draw.choice(["utf-16", "gb18030", "utf-8-sig"]))
        return half + draw.choice([content[place:], b""])
    if kind == "huge":
        return content[:place] + draw.choice([b"a", b"[", b'"', b"\\", b"\xe8", b"\n", b"1"]) * 30_000 + content[place:]
    return content.replace(b"\n", draw.choice([b"\r", b"\r\n", b"\0", b"\x0b", b"\x1e"]))


@pytest.mark.parametrize("reader", NAMES)
def test_mutants_end_in_a_full_account_or_one_line(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 20_000)
    draw = random.Random(f"hostile {reader}")
    contents = [content_of(reader, make_dialogues(count, seed=count)).encode() for count in (1, 4, 12)]
    outcomes = dict.fromkeys(("whole", "with rejects", "refused"), 0)
    num_mutants = NUM_OF_FORM if reader in FORMS else NUM_MUTANTS
    for number in range(num_mutants):
        content = draw.choice(contents)
        for _ in range(draw.choice([1, 1, 2, 3])):
            content = mutate(draw, content) or b"x"
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / NAMES[reader]
        path.write_bytes(content)
        output = folder / "out.jsonl"
        share = draw.choice([0, 0.3, 1])
        try:
            found = prepare(
                [f"{reader.split('.')[0]}={path}"],
                output,
                max_rejected_share=share,
                dedup="near" if number % 25 == 0 else "exact",
                clean=number % 3 > 0,
                redact=number % 7 > 0,
            )
        except InputError as error:
            message = one_line(error)
            assert len(message) < 1000 and message == str(error), message
            assert [file.name for file in folder.iterdir()] == [path.name], message
            outcomes["refused"] += 1
            continue
        check_report(found, output)
        assert all(row["malformed"] <= share * row["rows"] for row in found["sources"].values())
        outcomes["with rejects" if read_lines(output.with_suffix(".rejected.jsonl")) else "whole"] += 1
    assert min(outcomes.values()) > num_mutants // 50, outcomes  # all three cases were seen


@pytest.mark.parametrize("reader", NAMES)
def test_a_row_of_10_mb_is_read_like_any_other(tmp_path, reader):
    dialogues = make_dialogues(3)
    letters = random.Random(1).choices("胃痛炎症休息检查复诊饮食。", k=34_000)
    dialogues[1][0] = ("user", dialogues[1][0][1] + "".join(letters) * 100)
    path = write_source(tmp_path, reader, dialogues)
    assert path.stat().st_size > 10_000_000
    content = prepare([f"{reader.split('.')[0]}={path}"], tmp_path / "out.jsonl", dedup="exact")
    check_report(content, tmp_path / "out.jsonl")
    assert content["rows"] == 3 and not content["dropped"]


@pytest.mark.parametrize("reader", ["cmd", "sharegpt", "chimed"])
def test_lines_in_another_encoding_are_put_aside_one_by_one(tmp_path, reader):
    lines = content_of(reader, make_dialogues(40)).splitlines()
    encodings = ["utf-8", "gb18030", "utf-16-le", "utf-8"]
    content = b"\n".join(line.encode(encodings[n % 4]).replace(b"\n", b"") for n, line in enumerate(lines))
    path = tmp_path / NAMES[reader]
    path.write_bytes(content + b"\n")
    output = tmp_path / "out.jsonl"
    found = prepare([f"{reader}={path}"], output, max_rejected_share=1)
    check_report(found, output)
    assert found["rows"] == 20
    assert [row["line"] for row in read_lines(output.with_suffix(".rejected.jsonl"))] == [
        n + 1 for n in range(40) if n % 4 in (1, 2)
    ]


def test_a_cycle_of_equal_ids_loses_no_dialogue(tmp_path):
    dialogues = make_dialogues(30)
    for reader, pattern in (("chimed", '"id": "1"'), ("mc", "id\t{}\t"), ("meddialog", "id={}\n")):
        text = content_of(reader, dialogues)
        for number in range(30):
            text = text.replace(pattern.format(number), pattern.format(number % 3), 1)
        path = tmp_path / NAMES[reader]
        path.write_text(text, encoding="utf-8")
        content = prepare([f"{reader}={path}"], tmp_path / "out.jsonl")
        check_report(content, tmp_path / "out.jsonl")
        assert content["rows"] == 30
