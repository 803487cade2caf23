"""Raw rows of every format, and the documents made of them."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT, SHARED

from megatron_chimed.data.documents import make_documents
from megatron_chimed.data.sources import Fault, detect_encoding, read_rows
from megatron_chimed.errors import InputError

ROWS = [{"ask": "高血压，怎么办？", "answer": "低盐\n饮食"}, {"ask": 'say "hi"', "answer": "好"}]
TABLE = '科室,ask,answer\n内科,"高血压，怎么办？","低盐\n饮食"\n外科,"say ""hi""",好\n'


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_table_is_read_in_its_encoding(tmp_path, encoding):
    path = write(tmp_path / "t.csv", TABLE.encode(encoding))
    found = [row for _, row in read_rows(path)]
    assert [{key: row[key] for key in ("ask", "answer")} for row in found] == ROWS
    assert list(found[0]) == ["科室", "ask", "answer"]  # no byte-order mark in the first name


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.jsonl.gz", "r.json.gz"])
def test_json_is_read_as_lines_or_array(tmp_path, name):
    lines, array = "\n".join(map(json.dumps, ROWS)), json.dumps(ROWS)
    for text in (lines, array, json.dumps(ROWS, indent=1)):  # whatever the name says
        assert [row for _, row in read_rows(write(tmp_path / name, text.encode()))] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,b\n\xff\xff\xff\n", "neither UTF-8, UTF-16, GB18030 nor Big5"),
        ("a.csv", b'a,b\n1,2\n1,"2\n3,4\n', "a.csv:3: a quote that opens in this row is not closed"),
        ("a.json", b'{"a":\n1}', "holds a JSON object; expected an array"),
        ("a.json", b"[1", "not a JSON file"),
        ("a.jsonl.gz", "cut", "a.jsonl.gz: damaged gzip file"),
        ("a.json.gz", "cut", "a.json.gz: damaged gzip file"),
        ("a.csv.gz", "cut", "a.csv.gz: damaged gzip file"),
        ("a.csv.gz", "flip", "a.csv.gz: damaged gzip file"),
        ("a.jsonl.gz", "plain", "a.jsonl.gz: damaged gzip file"),
        ("a.xlsx", b"", "unknown format '.xlsx'"),
    ],
)
def test_an_unreadable_file_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, str):
        packed = gzip.compress(b'{"a": "%d"}\n' % 7 * 50)
        flipped = packed[:10] + b"\xff" + packed[11:]  # no such kind of block
        path.write_bytes({"cut": packed[:-9], "flip": flipped, "plain": b'{"a": 1}\n'}[content])
    else:
        write(path, content)
    with pytest.raises(InputError) as refusal:
        list(read_rows(path))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="no such file"):
        list(read_rows(tmp_path / "missing.jsonl"))


def test_documents_are_made_and_bad_rows_are_put_aside(tmp_path):
    rows = [json.dumps(row) for row in ROWS] + ["{", '{"ask": "x"}', '{"ask": 1, "answer": ""}', '{"ask": "\\ud800"}']
    rows += ['{"ask": " ", "answer": ""}', '{"ask": "\\ud800", "answer": ""}']
    path = write(tmp_path / "rows.jsonl", "\n".join(rows).encode())
    output = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"6 of 8 rows are bad.*rows\.jsonl:3: invalid JSON"):
        make_documents([str(path)], "{ask}\n{answer}", output)
    assert not list(tmp_path.glob("out*"))
    made = make_documents([str(path)], "{ask}\n{answer}", output, max_rejected_share=1)
    assert made["documents"] == 2 and sum(made["rejected"].values()) == 6
    texts = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    assert texts == ["高血压，怎么办？\n低盐\n饮食", 'say "hi"\n好']
    rejected = [json.loads(line) for line in Path(f"{output}.rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("template", ["no field", "{", "{a.b}", "{}", "{a!z}", "{a!r}", "{a:d}", "{a:>5}", "{a:{b}}"])
def test_a_template_that_names_no_field_is_refused(tmp_path, template):
    with pytest.raises(InputError, match="--template"):
        make_documents([str(write(tmp_path / "r.jsonl", b"{}"))], template, tmp_path / "out.jsonl")


def test_a_bad_row_of_a_table_is_put_aside(tmp_path):
    path = write(tmp_path / "t.csv", b'a,b\n1,2\n1\n\n1,2,3\n1,"2"x\n"1\n",2\n1\n')
    assert list(read_rows(path)) == [
        (2, {"a": "1", "b": "2"}),
        (3, Fault("1 fields in a table of 2 columns", "1")),
        (5, Fault("3 fields in a table of 2 columns", "1,2,3")),
        (6, Fault("not CSV (',' expected after '\"')")),
        (7, {"a": "1\n", "b": "2"}),
        (9, Fault("1 fields in a table of 2 columns", "1")),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_only_line_ends_end_a_row_of_a_table(tmp_path, encoding):
    marks = ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\x1e"]
    text = "a,b\n" + "".join(f"一{mark}二,3\n" for mark in marks) + "x,y\r\nz,w\r"
    path = write(tmp_path / "t.csv", text.encode(encoding))
    fields = [(f"一{mark}二", "3") for mark in marks] + [("x", "y"), ("z", "w")]
    assert list(read_rows(path)) == [(n, {"a": a, "b": b}) for n, (a, b) in enumerate(fields, start=2)]


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json"])
def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path, name):
    path = write(tmp_path / name, b'\xef\xbb\xbf[{"a": 1}]' if "jsonl" not in name else b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_rows(path)) == [(1, {"a": 1})]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_row_with_bad_bytes_is_put_aside(tmp_path, encoding):
    good = "科室,ask\n" + "内科,高血压怎么办\n" * 300
    path = write(tmp_path / "t.csv", good.encode(encoding) + b"x,\xff\n" + "外科,骨折\n".encode(encoding))
    found = dict(read_rows(path))
    assert found[302].reason == f"invalid {encoding} bytes" and found[303] == {"科室": "外科", "ask": "骨折"}
    assert sum(isinstance(row, dict) for row in found.values()) == 301


def test_the_command_makes_documents_of_the_real_table(tmp_path):
    table = SHARED / "toyhom_internal_medicine.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not on this machine")
    assert detect_encoding(table) == "gb18030"
    command = [sys.executable, ROOT / "tools/make_documents.py", "--input", table, "--template", r"{title}\n{answer}"]
    done = subprocess.run([*command, "--output", tmp_path / "o.jsonl"], capture_output=True, text=True)
    assert done.returncode == 0 and "5000 documents, 0 rows rejected" in done.stdout, done.stderr
