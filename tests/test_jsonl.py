"""Files between steps: atomic, located, hashed; and how a command ends."""

import gzip
import json
import stat
import subprocess
import sys

import pytest

from megatron_chimed.corpus.manifest import check_corpus_sizes, find_corpus_manifest
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_output, parse_line, read_json, read_json_lines, write_json_lines


def test_an_output_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "out.txt"
    with pytest.raises(RuntimeError), atomic_output(path) as file:
        file.write("half")
        file.flush()
        assert not path.exists()
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with atomic_output(path) as file:
        file.write("whole\n")
    assert path.read_text() == "whole\n"
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044  # readable like any file, not private


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_output(path) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 7"),
        (b'{"a": ', "invalid JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number is too long"),
    ],
)
def test_a_bad_line_has_a_reason(line, reason):
    with pytest.raises(InputError, match=reason):
        parse_line(line)


def test_a_bad_line_is_located(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert write_json_lines(path, [{"a": "一"}, {"a": "二"}]) == 2
    assert [row for _, row in read_json_lines(path)] == [{"a": "一"}, {"a": "二"}]
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(InputError, match=r"rows\.jsonl:3: invalid JSON"):
        list(read_json_lines(path))
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "missing.json")


def test_a_corpus_of_another_size_than_its_manifest_is_refused(tmp_path):
    prefix = tmp_path / "c_text_document"
    with pytest.raises(InputError, match=r"no manifest lists c_text_document\.bin"):
        find_corpus_manifest(prefix)
    for suffix in (".bin", ".idx"):
        prefix.with_name(prefix.name + suffix).write_bytes(b"1234")
    names = [prefix.name + suffix for suffix in (".bin", ".idx")]
    manifest = {"bytes": dict.fromkeys(names, 4), "sha256": dict.fromkeys(names, "0")}
    (tmp_path / "c.manifest.json").write_text(json.dumps(manifest))
    first = check_corpus_sizes(prefix)
    manifest["sha256"][names[0]] = "1"
    (tmp_path / "c.manifest.json").write_text(json.dumps(manifest))
    assert check_corpus_sizes(prefix) != first
    (tmp_path / names[0]).write_bytes(b"123")
    with pytest.raises(InputError, match=r"c_text_document\.bin: has 3 bytes; c\.manifest\.json states 4"):
        check_corpus_sizes(prefix)
    (tmp_path / names[1]).unlink()
    (tmp_path / names[0]).write_bytes(b"1234")
    with pytest.raises(InputError, match=r"idx: is missing"):
        check_corpus_sizes(prefix)


def test_manifests_of_other_things_are_passed_over(tmp_path):
    for number, content in enumerate(["{", "\\xff", "[]", '{"bytes": 7}', '{"bytes": "c_text_document.bin"}', "{}"]):
        (tmp_path / f"{number}.manifest.json").write_text(content)
    (tmp_path / "7.manifest.json").mkdir()
    with pytest.raises(InputError, match="no manifest lists"):
        find_corpus_manifest(tmp_path / "c_text_document")
    (tmp_path / "c.manifest.json").write_text('{"bytes": {"c_text_document.bin": 4}}')
    assert find_corpus_manifest(tmp_path / "c_text_document")[0].name == "c.manifest.json"


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (2, {"a": 2})]
    path.write_bytes(b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2: invalid JSON"):
        list(read_json_lines(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_a_damaged_gzip_file_is_named(tmp_path, name):
    packed = gzip.compress(b'{"a": 1}\n' * 30)
    read = read_json if name == "a.json.gz" else lambda path: list(read_json_lines(path))
    for content in (packed[:-9], packed[:10] + b"\xff" + packed[11:], b'{"a": 1}\n'):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: damaged gzip file"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return None", 0, ""),
        ("raise InputError('rows.jsonl:3: bad\\nline')", 1, "error: rows.jsonl:3: bad line\n"),
        ("open('/no/such')", 1, "error: /no/such: No such file or directory\n"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
    ],
)
def test_a_command_ends_with_one_line_and_a_code(body, code, message):
    program = f"from megatron_chimed.errors import *\ndef main():\n    {body}\nexit_cleanly(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code
    assert message in done.stderr and "Traceback" not in done.stderr
