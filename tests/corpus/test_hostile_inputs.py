"""The corpus builder on a thousand damaged inputs: a corpus that passes verification, or one line and nothing left."""

import gzip
import json
import os
import random

import pytest
from support import corpora
from support.corpora import build, call, call_here, make_texts, to_lines
from support.mutations import BYTE_KINDS, mutate_bytes

from megatron_chimed import jsonl
from megatron_chimed.corpus.builder import TextOptions
from megatron_chimed.corpus.verify import verify_corpus
from megatron_chimed.errors import InputError, one_line

pytestmark = pytest.mark.slow
NUM_MUTANTS = 1000
TOKENS = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n", b'"', b"\\", b"\\u0000", b"{", b"}"]
TOKENS += [b"\\ud800", b"[" * 3000, b"]", b",", b":", b"null", b"NaN", b"-Infinity", b"1e999"]
TOKENS += [b"9" * 5000, b'{"text":' * 2000]
TOKENS += ["，".encode("gb18030"), b"\xed\xa0\x80", *(mark.encode() for mark in "\u2028\x85\u200b\ufeff")]
VALUES = [None, True, 0, -1.5, 10**400, "", " ", "\0", "\ufffd", "a" * 30_000, [], {}, [[]], [None], ["a", 1]]
VALUES += [["a", ""], "\x1b[2J", "x" * 100 + "\n" * 100, "</s><s>", "\U0010ffff", {"text": "a"}, "１３８" * 9]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return corpora.write_model(tmp_path_factory.mktemp("tokenizer"))


def mutate(draw, content):
    """One of the ways in which a file goes wrong."""
    kind = draw.choice([*BYTE_KINDS, "value", "binary", "huge", "encoding", "ends"])
    if kind in BYTE_KINDS:
        return mutate_bytes(draw, kind, content, TOKENS)
    place = draw.randrange(len(content) + 1)
    if kind == "value":
        lines = content.split(b"\n")
        lines[draw.randrange(len(lines))] = json.dumps({draw.choice(["text", "x"]): draw.choice(VALUES)}).encode()
        return b"\n".join(lines)
    if kind == "binary":
        return draw.randbytes(draw.choice([1, 100, 5000]))
    if kind == "huge":
        return content[:place] + draw.choice([b"a", b"[", b'"', b"\\", b"\xe8"]) * 70_000 + content[place:]
    if kind == "encoding":
        return content.decode(errors="replace").encode(draw.choice(["utf-16", "utf-32", "gb18030", "utf-8-sig"]))
    return content.replace(b"\n", draw.choice([b"\r", b"\r\n", b"\0", b"\x0b", b"\x1e"]))


def make_mutant(draw, texts):
    """Name and content of an input with one to three faults; one in five is compressed, before or after the fault."""
    content = to_lines([{"text": text} for text in draw.sample(texts, draw.choice([1, 5, 30]))])
    compressed = draw.random() < 0.2
    late = compressed and draw.random() < 0.5
    if late:
        content = gzip.compress(content)
        mutated = draw.choice([content[: draw.randrange(len(content))], mutate(draw, content)])
        return "a.jsonl.gz", mutated
    for _ in range(draw.choice([1, 1, 2, 3])):
        content = mutate(draw, content) or b"x"
    return ("a.jsonl.gz", gzip.compress(content)) if compressed else ("a.jsonl", content)


def test_a_thousand_mutants_end_in_a_whole_corpus_or_one_line(tmp_path, model, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 60_000)
    draw, texts = random.Random(20), make_texts(200)
    outcomes = {"built": 0, "built with rejects": 0, "refused": 0}
    for number in range(NUM_MUTANTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        name, content = make_mutant(draw, texts)
        (folder / name).write_bytes(content)
        options = TextOptions(append_eod=True, clean=number % 3 == 0, dedup=[None, "exact"][number % 2])
        try:
            share = draw.choice([0, 0.01, 0.9])
            found = build([folder / name], folder / "out", model, options, max_rejected_share=share)
        except InputError as error:
            assert len(one_line(error)) < 1000 and "\n" not in one_line(error)
            assert os.listdir(folder) == [name], (number, error)
            outcomes["refused"] += 1
            continue
        verify_corpus(folder / "out")
        rows = (folder / "out.rejected.jsonl").read_bytes().splitlines()
        assert all({"file", "line", "reason", "excerpt"} == set(json.loads(row)) for row in rows)
        duplicates = found["dropped"].get("exact duplicate", 0)
        assert len(rows) == sum(found["dropped"].values()) - duplicates
        assert found["documents"] + duplicates + len(rows) == found["input_rows"]
        assert not (folder / "out.work").exists()
        outcomes["built with rejects" if rows else "built"] += 1
    assert min(outcomes.values()) > 50, outcomes  # all three cases were seen


def test_the_command_itself_gives_one_line_on_mutants(tmp_path, model):
    draw, texts = random.Random(7), make_texts(200)
    codes = set()
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        name, content = make_mutant(draw, texts)
        (folder / name).write_bytes(content)
        result = call(
            "preprocess_data.py", "--input", folder / name, "--output-prefix", folder / "out", "--workers", 2,
            "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model,
        )  # fmt: skip
        codes.add(result.returncode)
        assert result.returncode in (0, 1) and "Traceback" not in result.stderr, result.stderr
        if result.returncode:
            last = result.stderr.replace("\r", "\n").splitlines()[-1]
            assert last.startswith("preprocess_data.py: error: ") and result.stderr.count("error") == 1
            assert os.listdir(folder) == [name]
        else:
            verify_corpus(folder / "out")
    assert codes == {0, 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--input", "missing.jsonl"],
        ["--input", "no*match.jsonl"],
        ["--input", "."],
        ["--tokenizer-model", "missing.model"],
        ["--tokenizer-model", "a.jsonl"],
        ["--tokenizer-type", "HuggingFaceTokenizer"],
        ["--output-prefix", "a.jsonl/out"],
    ],
)
def test_wrong_paths_give_one_line(tmp_path, model, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "胃炎"}\n')
    given = {
        "--input": "a.jsonl", "--output-prefix": "out", "--tokenizer-type": "SentencePieceTokenizer",
        "--tokenizer-model": str(model), "--workers": "0",
    }  # fmt: skip
    given[arguments[0]] = arguments[1]
    result = call_here("preprocess_data.py", *(part for pair in given.items() for part in pair))
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and result.stderr.isprintable() is False
    assert "Traceback" not in result.stderr and os.listdir(tmp_path) == ["a.jsonl"]
