"""Which rows of an input reach the corpus: line ends, limits, quarantine, the fast way of reading against the slow."""

import argparse
import json

import pytest
from support import corpora
from support.corpora import build, call_here, make_texts, to_lines, write_rows

from megatron_chimed import jsonl
from megatron_chimed.corpus.arguments import add_arguments, check_arguments
from megatron_chimed.corpus.builder import RunOptions, TextOptions, build_corpus
from megatron_chimed.corpus.inputs import LineBatch
from megatron_chimed.corpus.part import load_part
from megatron_chimed.corpus.worker import Worker
from megatron_chimed.errors import InputError
from megatron_chimed.text.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer
from megatron_chimed.text.tokenizer_training import write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return corpora.write_model(tmp_path_factory.mktemp("tokenizer"))


def rejected(prefix):
    return [json.loads(line) for line in open(f"{prefix}.rejected.jsonl", encoding="utf-8")]


def binary(prefix):
    return prefix.with_name(f"{prefix.name}_text_document.bin").read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
def test_a_large_file_is_read_to_its_end_whatever_ends_its_lines(tmp_path, model, monkeypatch, name, end):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 3000)
    rows = [{"text": text} for text in make_texts(300)]
    build([write_rows(tmp_path / "plain.jsonl", rows)], tmp_path / "plain", model)
    rows[150:150] = [b"x" * 10_000]
    rows.append(b"{")
    path = tmp_path / name
    write_rows(path, [to_lines(rows).replace(b"\n", end)[: -len(end)]])
    content = build([path], tmp_path / "out", model, max_rejected_share=0.5)
    assert [(row["line"], row["reason"][:13]) for row in rejected(tmp_path / "out")] == [
        (151, "line too long"),
        (302, "invalid JSON "),
    ]
    assert binary(tmp_path / "out") == binary(tmp_path / "plain") and content["input_rows"] == 302
    inode = (tmp_path / "out_text_document.bin").stat().st_ino
    build([path], tmp_path / "out", model, max_rejected_share=0.5)  # the digest is that of the whole file
    assert (tmp_path / "out_text_document.bin").stat().st_ino == inode


@pytest.mark.parametrize("start", [b'{"text": "a"}', b"", b'{"text": '])
def test_the_start_of_a_line_over_the_limit_is_never_taken_for_the_line(tmp_path, model, monkeypatch, start):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + b" " * 5000 + b"x\n" + to_lines([{"text": text} for text in make_texts(20)]))
    content = build([path], tmp_path / "out", model, batch_bytes=500, max_rejected_share=0.5)
    assert [(row["line"], row["reason"][:13]) for row in rejected(tmp_path / "out")] == [(1, "line too long")]
    assert content["documents"] == 20


def test_rows_in_quarantine_do_not_come_back_as_input(tmp_path, model):
    rows = [{"text": text} for text in make_texts(30)]
    write_rows(tmp_path / "a.jsonl", [*rows, b'{"text": "x"'])
    share = {"max_rejected_share": 0.5}
    first = build([tmp_path / "*.jsonl"], tmp_path / "out", model, **share)
    assert build([tmp_path / "*.jsonl"], tmp_path / "out", model, **share) == first
    quarantine = tmp_path / "out.rejected.jsonl"
    assert jsonl.expand([str(tmp_path / "*.jsonl")]) == [str(tmp_path / "a.jsonl")]
    assert jsonl.expand([str(quarantine)]) == [str(quarantine)]
    named = build([tmp_path / "a.jsonl", quarantine], tmp_path / "second", model, **share)  # as a shell expands it
    assert named["documents"] == 30 and named["dropped"] == {"invalid JSON": 1, "missing key": 1}


@pytest.mark.parametrize("options", [{"redact": True}, {"clean": True}, {}])
def test_the_quarantine_is_redacted_where_the_corpus_is(tmp_path, model, options):
    rows = [{"text": text} for text in make_texts(5)]
    rows += ['{"text": "电话13812345678'.encode(), b'{"other": "' + b"x" * 183 + b' 13987654321"}']  # cut within
    build(
        [write_rows(tmp_path / "a.jsonl", rows)], tmp_path / "out", model, TextOptions(**options), max_rejected_share=1
    )
    first, second = (row["excerpt"] for row in rejected(tmp_path / "out"))
    assert "电话" in first and ("13812345678" in first) == (not options)
    assert len(second) <= 200 and ("139" in second) == (not options)


def test_a_finished_corpus_with_more_bad_rows_than_now_allowed_is_not_up_to_date(tmp_path, model):
    rows = [{"text": text} for text in make_texts(18)] * 5
    path = write_rows(tmp_path / "a.jsonl", [*rows, *[b"{"] * 10])
    options = TextOptions(dedup="exact")  # the duplicates are no bad rows
    made = build([path], tmp_path / "out", model, options, max_rejected_share=0.1)
    assert made["dropped"] == {"exact duplicate": 72, "invalid JSON": 10}
    inode = (tmp_path / "out_text_document.bin").stat().st_ino
    assert build([path], tmp_path / "out", model, options, max_rejected_share=0.1) == made
    assert (tmp_path / "out_text_document.bin").stat().st_ino == inode
    with pytest.raises(InputError, match="10 of 100 rows are bad"):
        build([path], tmp_path / "out", model, options, max_rejected_share=0.09)
    assert (tmp_path / "out_text_document.bin").stat().st_ino == inode  # what was made stays


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--batch-mb", value) for value in ("nan", "inf", "-1", "0", "1e300")]
    + [("--output-prefix", value) for value in ("", ".", "/", "..", "a/..")]
    + [("--json-keys", "a/b")],
)
def test_flags_that_name_nothing_usable_are_refused(flag, value):
    given = {
        "--input": "a",
        "--output-prefix": "o",
        "--tokenizer-type": "HuggingFaceTokenizer",
        "--tokenizer-model": "m",
    }
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    good, bad = ([part for pair in one.items() for part in pair] for one in (given, {**given, flag: value}))
    check_arguments(*parser.parse_known_args(good))
    with pytest.raises(InputError, match=flag) as refusal:
        check_arguments(*parser.parse_known_args(bad))
    assert "\n" not in str(refusal.value)


def test_the_command_refuses_them_in_one_line(tmp_path):
    flags = ["--input", "a", "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "m"]
    result = call_here("preprocess_data.py", *flags, "--output-prefix", tmp_path / "o", "--batch-mb", "nan")
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "--batch-mb nan" in result.stderr


def test_an_empty_text_is_rejected_even_if_the_tokenizer_would_make_a_bos_of_it(tmp_path, model):
    from tokenizers import Tokenizer, processors

    write_tokenizer(model.read_bytes(), tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert tokenizer.encode_batch([""], parse_special=True, add_special=True) == [[1]]
    path = write_rows(tmp_path / "a.jsonl", [{"text": "胃炎"}, {"text": ""}, {"text": "头痛"}])
    run = RunOptions(progress=False, max_rejected_share=0.5)
    content = build_corpus([str(path)], tmp_path / "out", tokenizer, TextOptions(), run)
    assert content["documents"] == 2 and content["dropped"] == {"empty document": 1}


ODD = [
    b'{"text":"a","text":"b"}',
    b'{"text":"a","text":1}',
    b'{"text":1,"text":"a"}',
    b'{"\\u0074ext":"a"}',
    b'{"x":"a"}',
]
ODD += [b'{"text":"a","x":' + value + b"}" for value in (
    b"NaN", b"Infinity", b"-Infinity", b"9" * 30, b"9" * 5000, b"-" + b"9" * 5000, b"1e999", b"1E400", b"1e-999", b"01",
    b".5", b"1.", b"-0", b"+1", b"0." + b"9" * 6000, b"tru", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"',
    b"1" + b"0" * 400,
)]  # fmt: skip
ODD += [b'{"text":"' + value + b'"}' for value in (
    b"", b" ", b"\\ud800", b"\\uDC00x", b"\\ud83d\\ude00", b"a\x00b", b"a\\u0000b", b"a\x1fb", b"a\x7fb", b"a\tb",
    b"a\x0cb", b"a\x85b", b"a\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xef\xbf\xbf",
    b"\xf0\x9f\x98\x80", b"a\\/b", b"a\\x", b"a\\u00e", b"a\\b\\f\\n\\r\\t", b"a\xe2\x80\xa8b", b"</s>",
)]  # fmt: skip
ODD += [b'{"text":' + value + b"}" for value in (
    b'["a","b"]', b"[]", b'[""]', b'["a",""]', b'["a",1]', b'[["a"]]', b"null", b"{}", b"true", b"7", b'"a"', b'"a",',
    b'"a" /*c*/', b'"a"', b'"a" x',
)]  # fmt: skip
ODD += [
    b"\xef\xbb\xbf" + ODD[0],
    b"\x0c" + ODD[0],
    ODD[0] + b"\x0b",
    ODD[0] + b"\xe2\x80\xa8",
    ODD[0] * 2,
    ODD[0] + b"\x00",
]
ODD += [
    b"\x0b",
    b"\x0c",
    b"\x1c",
    b"\xc2\x85",
    b"\xc2\xa0",
    b" \t ",
    b"[]",
    b'"text"',
    b"1",
    b"null",
    b"NaN",
    b"{}",
    b"'a'",
]
ODD += [b'[{"text":"a"}]', b"{'text':'a'}", b'{"text":"a\\', b'{"text":"a"', b'{"te\xff":"a","text":"b"}', b"[" * 5000]
ODD += [b'{"text":"a","x":' + b"[" * depth + b"]" * depth + b"}" for depth in (100, 900, 1020, 1023, 1024, 1025, 2000)]
ODD += [b'{"text":"a","x":' + b'{"x":' * depth + b"1" + b"}" * depth + b"}" for depth in (100, 900, 1023, 1024, 1025)]


def test_the_fast_way_of_reading_takes_and_rejects_the_same_rows_as_the_slow_one(tmp_path, model):
    tokenizer = SentencePieceTokenizer(model)
    fast, slow = Worker(tokenizer, TextOptions()), Worker(tokenizer, TextOptions())
    slow._usual_texts = lambda lines: [None] * len(lines)
    assert len(ODD) > 90
    taken = 0
    good = b'{"text": "\xe8\x83\x83"}'
    contents = [b"\n".join(ODD), *ODD, *(good + b"\n" + odd + b"\r\n" + good + b"\r" for odd in ODD)]
    for content in contents:
        batch = LineBatch(0, "a", 0, len(content), len(content), content)
        parts = []
        for worker in (fast, slow):
            worker.make_part(batch, tmp_path / "part.npz")
            parts.append(load_part(tmp_path / "part.npz"))
        one, other = parts
        assert one.rejected == other.rejected and one.reasons == other.reasons, content[:100]
        assert (one.rows, one.lines) == (other.rows, other.lines), content[:100]
        for name in ("ids", "lengths", "counts"):
            found, wanted = (getattr(part.documents["text"], name).tolist() for part in parts)
            assert found == wanted, (name, content[:100])
        taken += len(one.documents["text"].counts) == 1
    assert 20 < taken < len(ODD)  # both outcomes were seen
