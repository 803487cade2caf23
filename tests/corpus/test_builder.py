"""The corpus builder: what comes out equals the slow way, what is bad is set aside, and a killed run goes on."""

import io
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import sentencepiece
from support import corpora, reference
from support.corpora import build, call, call_here, command, files_of, make_texts, write_rows

from megatron_chimed import jsonl
from megatron_chimed.corpus import inputs, output
from megatron_chimed.corpus.builder import RunOptions, TextOptions, work_folder
from megatron_chimed.corpus.indexed_dataset import read_index
from megatron_chimed.corpus.merge import merge_shards
from megatron_chimed.errors import InputError
from megatron_chimed.text.tokenizer import SentencePieceTokenizer

DATA = (".bin", ".idx")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return corpora.write_model(tmp_path_factory.mktemp("tokenizer"))


def expected(model, documents, append_eod=False):
    """.bin and .idx the slow way; documents [documents][sequences] of text."""
    tokenizer = SentencePieceTokenizer(model)
    ids = [[tokenizer.encode(text) for text in sequences] for sequences in documents]
    if append_eod:
        ids = [[*document[:-1], [*document[-1], tokenizer.eos_id]] for document in ids]
    binary, index = reference.indexed_dataset(ids, tokenizer.vocab_size)
    return {".bin": binary, ".idx": index}


def dataset(prefix, key="text"):
    return {suffix: prefix.with_name(f"{prefix.name}_{key}_document{suffix}").read_bytes() for suffix in DATA}


@pytest.mark.filterwarnings("ignore:This process")  # pytest's own threads; the workers use none of them
@pytest.mark.parametrize(("workers", "append_eod"), [(0, False), (0, True), (2, True)])
def test_the_corpus_equals_documents_written_one_by_one(tmp_path, model, workers, append_eod):
    texts = make_texts(240)
    plain = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts[:100]])
    packed = write_rows(tmp_path / "b.jsonl.gz", [{"text": text} for text in texts[100:200]])
    windows, old = tmp_path / "c.jsonl", tmp_path / "d.jsonl"
    lines = [json.dumps({"text": text}) for text in texts[200:]]
    # Byte order mark, CRLF, blank lines, no line end at the end of the file; then lines that end in CR alone.
    windows.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines[:30]).encode())
    old.write_bytes("\r".join(lines[30:]).encode())
    options = TextOptions(append_eod=append_eod)
    content = build([plain, packed, windows, old], tmp_path / "out", model, options, workers=workers)
    assert dataset(tmp_path / "out") == expected(model, [[text] for text in texts], append_eod)
    assert content["documents"] == 240 and content["dropped"] == {}
    assert content["tokens"] == read_index(tmp_path / "out_text_document.idx").lengths.sum()


def test_a_list_of_strings_is_one_document_of_several_sequences(tmp_path, model):
    rows = [["一", "发热", ""], "头痛", ["", "胃炎"]]
    path = write_rows(tmp_path / "a.jsonl", [{"text": row, "title": "检查"} for row in rows])
    options = TextOptions(json_keys=("text", "title"), append_eod=True)
    build([path], tmp_path / "out", model, options)
    assert dataset(tmp_path / "out") == expected(model, [["一", "发热"], ["头痛"], ["胃炎"]], append_eod=True)
    assert dataset(tmp_path / "out", "title") == expected(model, [["检查"]] * 3, append_eod=True)


BAD = [
    (b'{"text": "a"', "invalid JSON", "Expecting ',' delimiter"),
    (b'{"text": "a"} {"text": "b"}', "invalid JSON", "Extra data"),
    (b'{"other": "a"}', "missing key", "'text'"),
    (b'{"text": 7}', "not a string", "field 'text' holds int"),
    (b'{"text": ["a", null]}', "not a string", "NoneType"),
    (b'["text"]', "expected a JSON object", "list"),
    (b'{"text": ""}', "empty document", "field 'text'"),
    (b'{"text": []}', "empty document", "field 'text'"),
    (b'{"text": "\xff\xfe"}', "invalid UTF-8", "byte 10"),
    (b'{"text": "\\ud83d"}', "unpaired surrogate", "field 'text'"),
    (b'{"text": ' + b"[" * 100_000, "invalid JSON", "nested too deeply"),
    (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "invalid JSON", "a number is too long"),
]


@pytest.mark.parametrize("shuffled", [False, True])
def test_every_bad_row_is_quarantined_with_file_line_and_reason_and_no_good_one(tmp_path, model, shuffled):
    good = [{"text": text} for text in make_texts(50)]
    rows = good[:20] + [b""] + [row for row, _, _ in BAD] + good[20:]
    if shuffled:  # bad rows far apart, in different batches
        rows = [row for pair in zip(good[: len(BAD)], (row for row, _, _ in BAD), strict=True) for row in pair]
        rows += good[len(BAD) :]
    path = write_rows(tmp_path / "a.jsonl", rows)
    content = build([path], tmp_path / "out", model, max_rejected_share=0.5)
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    lines = [number for number, row in enumerate(rows, start=1) if isinstance(row, bytes) and row]
    assert [(row["file"], row["line"]) for row in rejected] == [(str(path), number) for number in lines]
    for row, (line, kind, detail) in zip(rejected, BAD, strict=True):
        assert row["reason"].startswith(kind) and detail in row["reason"], (row, kind, detail)
        assert row["excerpt"] == line.decode(errors="replace")[:200]
    assert dataset(tmp_path / "out") == expected(model, [[row["text"]] for row in good])
    assert sum(content["dropped"].values()) == len(BAD) and content["dropped"]["invalid JSON"] == 4


def test_a_document_without_tokens_is_set_aside_in_all_its_keys(tmp_path):
    options = {"sentence_iterator": iter(make_texts(300)), "model_writer": io.BytesIO(), "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(vocab_size=200, **options)  # it drops superfluous blanks
    model = tmp_path / "dropping.model"
    model.write_bytes(options["model_writer"].getvalue())
    rows = [{"text": "胃炎", "title": "一"}, b"{", {"text": "发热", "title": "  "}]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"text": ["", "头痛"], "title": ["二", " "]}])
    content = build([path], tmp_path / "out", model, TextOptions(json_keys=("text", "title")), max_rejected_share=0.5)
    assert content["dropped"] == {"empty document": 1, "invalid JSON": 1}
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"][:14]) for row in rejected] == [(2, "invalid JSON ("), (3, "empty document")]
    assert dataset(tmp_path / "out") == expected(model, [["胃炎"], ["头痛"]])
    assert dataset(tmp_path / "out", "title") == expected(model, [["一"], ["二"]])


@pytest.mark.parametrize(("bad", "fails"), [(1, False), (2, True)])
def test_too_many_bad_rows_fail_and_leave_nothing(tmp_path, model, bad, fails):
    path = write_rows(tmp_path / "a.jsonl", [b"{"] * bad + [{"text": text} for text in make_texts(100 - bad)])
    if not fails:
        assert build([path], tmp_path / "out", model)["dropped"] == {"invalid JSON": bad}
        return
    with pytest.raises(InputError, match=r"2 of 100 rows are bad.*a\.jsonl:1: invalid JSON"):
        build([path], tmp_path / "out", model)
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_line_over_the_limit_is_set_aside_without_being_held_whole(tmp_path, model, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 10_000)
    texts = make_texts(40)
    rows = [{"text": text} for text in texts]
    rows[10:10] = [{"text": "长" * 50_000}]
    rows.append({"text": "长" * 50_000})
    path = write_rows(tmp_path / "a.jsonl", rows)
    packed = write_rows(tmp_path / "b.jsonl.gz", rows)
    build([path, packed], tmp_path / "out", model, max_rejected_share=0.5)
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [11, 42] * 2
    assert {row["reason"].split(":")[0] for row in rejected} == {"line too long"}
    assert dataset(tmp_path / "out") == expected(model, [[text] for text in texts] * 2)


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_of_duplicates_the_first_is_kept(tmp_path, model, kind):
    texts = [f"{text}{make_texts(60, seed=9)[n]}" for n, text in enumerate(make_texts(60))]
    close = texts[3] + "！"  # a near duplicate only
    rows = [*texts[:50], texts[7], close, *texts[50:], texts[0]]
    path = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in rows])
    content = build([path], tmp_path / "out", model, TextOptions(dedup=kind))
    kept = texts if kind == "near" else [*texts[:50], close, *texts[50:]]
    assert dataset(tmp_path / "out") == expected(model, [[text] for text in kept])
    assert content["dropped"] == {f"{kind} duplicate": 3 if kind == "near" else 2}
    without = build([path], tmp_path / "control", model)
    assert without["documents"] == 63 and without["dropped"] == {}


def test_cleaning_redacts_and_counts_by_kind(tmp_path, model):
    rows = [{"text": "患者电话13812345678，体温３７．５℃。。。\u200b"}, {"text": "邮箱 someone@example.com 复诊"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    content = build([path], tmp_path / "out", model, TextOptions(clean=True))
    assert sum(content["redacted"].values()) == 2 and len(content["redacted"]) == 2
    assert content["cleaned"] == {"repeated punctuation": 1, "stray or full-width characters": 5}
    index = read_index(tmp_path / "out_text_document.idx")
    ids = np.frombuffer((tmp_path / "out_text_document.bin").read_bytes(), index.dtype)
    text = SentencePieceTokenizer(model).decode(ids)
    assert "37.5℃。" in text and "1381234" not in text and "example.com" not in text
    only = build([path], tmp_path / "only", model, TextOptions(redact=True))
    assert only["cleaned"] == {} and only["redacted"] == content["redacted"] and only["tokens"] != content["tokens"]


def test_a_finished_corpus_is_kept_and_a_changed_input_or_setting_makes_it_anew(tmp_path, model, capsys):
    path = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(30)])
    first = build([path], tmp_path / "out", model)
    written = (tmp_path / "out_text_document.bin").stat().st_ino
    assert build([path], tmp_path / "out", model) == first
    assert (tmp_path / "out_text_document.bin").stat().st_ino == written and "up to date" in capsys.readouterr().err
    assert build([path], tmp_path / "out", model, TextOptions(append_eod=True))["tokens"] == first["tokens"] + 30
    times = path.stat()
    path.write_bytes(path.read_bytes().replace("号".encode(), "次".encode()))  # of the same size and time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = build([path], tmp_path / "out", model)
    assert second["sha256"] != first["sha256"]
    os.truncate(tmp_path / "out_text_document.bin", 10)
    assert build([path], tmp_path / "out", model) == second
    assert (tmp_path / "out_text_document.bin").stat().st_size > 10


class Killed(BaseException):
    """Stands for a process that ends without cleaning up."""


@pytest.fixture
def interrupted(tmp_path, model, monkeypatch):
    """A run that ended with some parts finished; returns (input, prefix, the parts' names)."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(200)])
    add, calls = output.Assembler.add, []

    def add_some(self, *args):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        add(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(output.Assembler, "add", add_some)
        with pytest.raises(Killed):
            build([path], tmp_path / "out", model)
    return path, tmp_path / "out", sorted((tmp_path / "out.work/parts").glob("*.npz"))


def test_a_run_goes_on_from_finished_parts_and_makes_a_damaged_one_again(tmp_path, model, interrupted, monkeypatch):
    path, prefix, parts = interrupted
    damaged = bytearray(parts[2].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    parts[2].write_bytes(damaged)
    made, make = [], corpora.SentencePieceTokenizer.encode_batch
    monkeypatch.setattr(
        SentencePieceTokenizer, "encode_batch", lambda self, texts, **k: made.append(1) or make(self, texts, **k)
    )
    build([path], prefix, model)
    done = len(made)
    build([path], tmp_path / "whole", model)
    assert len(parts) == 5 and len(made) - done == done + len(parts) - 1  # all but the four good parts were made
    assert files_of(prefix, *DATA, ".rejected.jsonl") == files_of(tmp_path / "whole", *DATA, ".rejected.jsonl")
    assert not (tmp_path / "out.work").exists()


def test_parts_made_with_other_settings_are_not_used(tmp_path, model, interrupted):
    path, prefix, _ = interrupted
    build([path], prefix, model, TextOptions(append_eod=True))
    assert dataset(prefix) == expected(model, [[text] for text in make_texts(200)], append_eod=True)


@pytest.mark.parametrize("moves", range(1, 4))
def test_killed_between_two_renames_there_is_no_manifest_and_the_next_run_mends_it(tmp_path, model, monkeypatch, moves):
    path = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(30)])
    build([path], tmp_path / "out", model, TextOptions(append_eod=True))
    replace, done = os.replace, []

    def replace_some(source, target):
        if str(target).startswith(str(tmp_path / "out")) and "work" not in str(target):
            done.append(target)
            if len(done) == moves:
                raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_some)
        with pytest.raises(Killed):
            build([path], tmp_path / "out", model)
    assert not (tmp_path / "out.manifest.json").exists()
    build([path], tmp_path / "out", model)
    assert dataset(tmp_path / "out") == expected(model, [[text] for text in make_texts(30)])


def test_a_second_run_on_the_same_prefix_refuses(tmp_path, model, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    path = write_rows(tmp_path / "a.jsonl", [{"text": "胃炎"}])
    with work_folder(tmp_path / "out"), pytest.raises(InputError, match="another run is at work"):
        build([path], tmp_path / "out", model)
    assert build([path], tmp_path / "out", model)["documents"] == 1


@pytest.mark.parametrize("dedup", [None, "exact", "near"])
@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_merged_shards_equal_one_run(tmp_path, model, num_shards, dedup):
    texts = [text for number, text in enumerate(make_texts(150)) for _ in range(1 + (number % 10 == 0))]
    rows = [{"text": text} for text in [*texts, *make_texts(20)]]
    rows[40:40] = [b"{", b"[]"]
    inputs = [
        write_rows(tmp_path / "a.jsonl", rows[:90]),
        write_rows(tmp_path / "b.jsonl.gz", rows[90:130]),
        write_rows(tmp_path / "c.jsonl", [*rows[130:], b"}"]),
    ]
    options = TextOptions(dedup=dedup, append_eod=True)
    whole = build(inputs, tmp_path / "whole", model, options, max_rejected_share=0.9)
    for index in range(num_shards):
        build(
            inputs, tmp_path / "out", model, options, max_rejected_share=0.9, num_shards=num_shards, shard_index=index
        )
    content = merge_shards(tmp_path / "out", progress=False)
    merged = {suffix: data for suffix, data in files_of(tmp_path / "out").items() if "_shard-" not in suffix}
    assert {s: d for s, d in merged.items() if s.endswith((*DATA, ".rejected.jsonl"))} == files_of(
        tmp_path / "whole", *DATA, ".rejected.jsonl"
    )
    for field in ("documents", "tokens", "dropped", "vocab_size", "input_rows"):
        assert content[field] == whole[field]
    assert (dedup is not None) == (f"{dedup} duplicate" in content["dropped"])


def test_merging_refuses_missing_altered_and_mixed_shards(tmp_path, model):
    path = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(60)])
    with pytest.raises(InputError, match="no finished shard"):
        merge_shards(tmp_path / "out", progress=False)
    for index in range(2):
        build([path], tmp_path / "out", model, num_shards=3, shard_index=index)
    with pytest.raises(InputError, match="shard 2 of 3 is not finished"):
        merge_shards(tmp_path / "out", progress=False)
    build([path], tmp_path / "out", model, TextOptions(append_eod=True), num_shards=3, shard_index=2)
    with pytest.raises(InputError, match="other settings"):
        merge_shards(tmp_path / "out", progress=False)
    build([path], tmp_path / "out", model, num_shards=3, shard_index=2)
    binary = tmp_path / "out_shard-00001-of-00003_text_document.bin"
    binary.write_bytes(b"\xff" + binary.read_bytes()[1:])
    with pytest.raises(InputError, match="altered"):
        merge_shards(tmp_path / "out", progress=False)
    assert not files_of(tmp_path / "out", "/out_text_document.bin", "out.manifest.json")


def test_shards_divide_the_lines_without_loss_or_overlap(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b"%d" % n + b"x" * (n % 13) + b"\n" for n in range(200)) + b"last")
    for num_shards in (1, 2, 3, 10, 500):
        lines = b""
        for index in range(num_shards):
            for source in inputs.select_shard([str(path)], num_shards, index):
                before = path.read_bytes()[: len(lines)].count(b"\n")
                batches = list(inputs.cut_line_batches(0, source, 50, inputs.hashlib.sha256()))
                if batches:
                    assert inputs.count_lines_before(source) == before
                lines += b"".join(batch.read() for batch in batches)
        assert lines == path.read_bytes()


def workers_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def arguments(path, prefix, model, *more):
    return [
        "--input", path, "--output-prefix", prefix, "--tokenizer-type", "SentencePieceTokenizer",
        "--tokenizer-model", model, "--workers", 2, "--append-eod", "--dedup", "exact", "--batch-mb", 0.02, *more,
    ]  # fmt: skip


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, model):
    texts = [text * 20 for text in make_texts(2000)]
    path = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, *texts[:50]]] + [b"{"])
    parts = tmp_path / "out.work/parts"
    reused = 0
    for wanted in (0, 2, 8, 20, 60):  # kill once so many parts are there
        with open(tmp_path / "stderr", "w+") as stderr:
            process = subprocess.Popen(
                command("preprocess_data.py", *arguments(path, tmp_path / "out", model)), stderr=stderr, stdout=stderr
            )
            assert wait_for(lambda p=process, n=wanted: p.poll() is not None or len(list(parts.glob("*.npz"))) > n)
            children = workers_of(process.pid) if process.poll() is None else []
            process.send_signal(signal.SIGKILL)
            process.wait()
            stderr.seek(0)
            reused += "parts are finished" in stderr.read()
        left = [name for name in os.listdir(tmp_path) if name.startswith("out") and name != "out.work"]
        assert left == [] or "out.manifest.json" in left
        assert wait_for(lambda pids=children: not any(map(running, pids))), "worker processes outlive their parent"
    last = call("preprocess_data.py", *arguments(path, tmp_path / "out", model))
    whole = call("preprocess_data.py", *arguments(path, tmp_path / "whole", model))
    assert (last.returncode, whole.returncode) == (0, 0), last.stderr + whole.stderr
    outputs = (*DATA, ".rejected.jsonl")
    assert files_of(tmp_path / "out", *outputs) == files_of(tmp_path / "whole", *outputs)
    assert reused >= 2 and "parts are finished" in last.stderr and "parts are finished" not in whole.stderr


def test_a_worker_that_dies_ends_the_run_with_one_line(tmp_path, model):
    path = write_rows(tmp_path / "a.jsonl", [{"text": text * 20} for text in make_texts(8000)])
    process = subprocess.Popen(
        command("preprocess_data.py", *arguments(path, tmp_path / "out", model)),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert wait_for(lambda: process.poll() is not None or len(workers_of(process.pid)) == 2)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker process was killed" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr and not files_of(tmp_path / "out", ".manifest.json", *DATA)


def test_flags_of_megatrons_tool_are_taken_where_they_change_nothing(tmp_path, model):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "胃炎"}])
    accepted = ["--log-interval", 5, "--partitions", 2, "--keep-sequential-samples", "--lang", "english"]
    result = call("preprocess_data.py", *arguments(path, tmp_path / "out", model, *accepted))
    assert result.returncode == 0, result.stderr
    for refused in (["--split-sentences"], ["--partitions", 2], ["--find-optimal-num-workers"]):
        result = call_here("preprocess_data.py", *arguments(path, tmp_path / "other", model, *refused))
        assert result.returncode == 1 and refused[0] in result.stderr and result.stderr.count("\n") == 1
    assert not files_of(tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "--workers"),
        ({"num_shards": 2}, "--num-shards needs --shard-index"),
        ({"num_shards": 2, "shard_index": 2}, "--shard-index 2 of 2"),
        ({"max_rejected_share": float("nan")}, "--max-rejected-share"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RunOptions(**options)
