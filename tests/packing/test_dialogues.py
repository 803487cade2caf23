"""The packing command: same bytes however it is run, reused when unchanged, nothing half-written, bad rows named."""

import fcntl
import gzip
import hashlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from support.corpora import call, call_here, command, make_texts, write_model
from support.dialogues import make_dialogues, make_renderer, write_dialogues

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import sha256_file
from megatron_chimed.packing import chunks
from megatron_chimed.packing.dialogues import DialogueRowOptions, format_dialogue_rows, pack_dialogues
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import PlainTexts, Template
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_training import train_sentencepiece


@pytest.fixture(scope="module")
def renderer(tmp_path_factory) -> Renderer:
    return make_renderer("sentencepiece", tmp_path_factory.mktemp("tokenizer"))


def run(inputs, output, renderer, length=256, **options) -> dict:
    paths = [str(path) for path in (inputs if isinstance(inputs, list) else [inputs])]
    return pack_dialogues(paths, output, renderer, DialogueRowOptions(length, progress=False, **options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arrays(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name != "manifest.json"}


@pytest.mark.parametrize("mode", ["whole", "per-turn"])
def test_workers_and_batches_change_no_byte(tmp_path, renderer, monkeypatch, mode):
    source = write_dialogues(tmp_path / "in.jsonl", make_dialogues(400))
    run(source, tmp_path / "one", renderer, mode=mode)
    monkeypatch.setattr(chunks, "BATCH_BYTES", 2000)
    batches = list(chunks.read_record_batches([str(source)], [hashlib.sha256()]))
    assert len(batches) > 20
    run(source, tmp_path / "two", renderer, mode=mode, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_several_inputs_are_one_after_the_other_and_gz_is_read(tmp_path, renderer):
    dialogues = make_dialogues(60)
    whole = write_dialogues(tmp_path / "in.jsonl", dialogues)
    first = write_dialogues(tmp_path / "a.jsonl", dialogues[:25])
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress(write_dialogues(tmp_path / "b.jsonl", dialogues[25:]).read_bytes())
    )
    run(whole, tmp_path / "one", renderer)
    run([first, tmp_path / "b.jsonl.gz"], tmp_path / "two", renderer)
    assert arrays(tmp_path / "one") == arrays(tmp_path / "two")
    assert PackedRows(tmp_path / "two").arrays["segment_dialogue"].max() == 59


def test_per_turn_has_a_segment_for_each_answer(tmp_path, renderer):
    dialogues = make_dialogues(60, most_words=4)
    source = write_dialogues(tmp_path / "in.jsonl", dialogues)
    run(source, tmp_path / "out", renderer, 4096, mode="per-turn")
    found = Counter(PackedRows(tmp_path / "out").arrays["segment_dialogue"].tolist())
    assert found == {number: len(dialogue.turns) // 2 for number, dialogue in enumerate(dialogues)}
    assert max(found.values()) > 2


def test_an_unchanged_dataset_is_reused_and_any_change_builds_it_again(tmp_path, renderer, capsys):
    source, output = write_dialogues(tmp_path / "in.jsonl", make_dialogues(50)), tmp_path / "out"
    first = run(source, output, renderer)
    assert "up to date" not in capsys.readouterr().err
    stamp = (output / "tokens.npy").stat().st_mtime_ns
    assert run(source, output, renderer, workers=1) == first
    assert "up to date" in capsys.readouterr().err and (output / "tokens.npy").stat().st_mtime_ns == stamp

    other = Renderer(PlainTexts(user_suffix="\n\n[bot]:").template(), renderer.tokenizer)
    tokenizer = Renderer(Template(), load_tokenizer(write_other_model(tmp_path)))
    changes = [(renderer, {"length": 255}), (renderer, {"seed": 1}), (renderer, {"mode": "per-turn"})]
    for changed, options in [*changes, (other, {}), (tokenizer, {})]:
        run(source, output, renderer)
        capsys.readouterr()
        content = run(source, output, changed, **options)
        assert "up to date" not in capsys.readouterr().err and content["parents"] != first["parents"]
    run(source, output, renderer)
    write_dialogues(source, make_dialogues(50, seed=1))
    assert run(source, output, renderer)["parents"]["inputs"] != first["parents"]["inputs"]
    (output / "tokens.npy").unlink()
    run(source, output, renderer)
    PackedRows(output).verify()


def write_other_model(folder: Path) -> Path:
    """A tokenizer of another size."""
    (folder / "other.model").write_bytes(train_sentencepiece(make_texts(300), 400))
    return folder / "other.model"


def test_the_manifest_states_parents_hashes_and_what_was_dropped(tmp_path, renderer):
    source = write_dialogues(tmp_path / "in.jsonl", make_dialogues(80))
    content = run(source, tmp_path / "out", renderer, 40)
    assert set(content["parents"]) == {"inputs", "template", "tokenizer", "settings"}
    assert content["parents"]["template"] == renderer.template.fingerprint
    assert content["parents"]["tokenizer"] == renderer.tokenizer.fingerprint
    assert all(sha256_file(tmp_path / "out" / name) == digest for name, digest in content["sha256"].items())
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == content
    assert content["dropped"]["response longer than the sequence"] == content["report"]["dropped"]["instances"] > 0
    assert content["sources"] == list(dict.fromkeys(dialogue.source for dialogue in make_dialogues(80)))
    report = format_dialogue_rows(content)
    for number in (content["rows"], content["report"]["lower_bound"], content["report"]["padding"]):
        assert f"{number:,}" in report
    for what in ("shortened", "cut", "dropped"):
        assert f"{content['report'][what]['tokens']:,} tokens" in report


BAD_ROWS = [
    (b"{", "invalid JSON"),
    (b"[]", "expected a JSON object, found list"),
    (b'{"id": "a", "source": "s", "turns": []}', "field 'turns' holds"),
    (b'{"id": "a", "source": "s", "turns": [{"role": "user", "text": "a"}]}', "the last turn is the user's"),
    (b'{"id": "a", "source": "s", "turns": [{"role": "doctor", "text": "a"}]}', "turn 0 has role 'doctor'"),
    (b"\xff", "invalid UTF-8 at byte 0"),
    (
        b'{"id": "a", "source": "s", "turns": [{"role": "user", "text": "\\ud800"},'
        b' {"role": "assistant", "text": "b"}]}',
        "unpaired surrogate",
    ),
]


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_line_and_nothing_is_left(tmp_path, renderer, monkeypatch, line, reason):
    monkeypatch.setattr(chunks, "BATCH_BYTES", 600)
    source = write_dialogues(tmp_path / "in.jsonl", make_dialogues(3))
    source.write_bytes(source.read_bytes() + b"\n" + line + b"\n" + source.read_bytes())
    with pytest.raises(InputError, match=r"in\.jsonl:5: ") as caught:
        run(source, tmp_path / "out", renderer, workers=line == b"{")  # one of them shows how errors leave a worker
    assert reason in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("length", [2, 8])
def test_nothing_to_pack_is_an_error(tmp_path, renderer, length):
    with pytest.raises(InputError, match="nothing to pack"):
        run(write_dialogues(tmp_path / "in.jsonl", make_dialogues(5)), tmp_path / "out", renderer, length)
    with pytest.raises(InputError, match="nothing to pack"):
        run(write_dialogues(tmp_path / "empty.jsonl", []), tmp_path / "out", renderer)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_not_replaced(tmp_path, renderer):
    source, output = write_dialogues(tmp_path / "in.jsonl", make_dialogues(5)), tmp_path / "out"
    output.mkdir()
    run(source, output, renderer)  # an empty one is taken
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "manifest.json").write_text('{"format": "thesis"}')
    for target in (precious, source):
        with pytest.raises(InputError, match="exists already; remove it or name another folder"):
            run(source, target, renderer)
    assert [path.name for path in precious.iterdir()] == ["manifest.json"]


def test_two_runs_on_one_output_do_not_mix(tmp_path, renderer):
    source, building = write_dialogues(tmp_path / "in.jsonl", make_dialogues(5)), tmp_path / ".out.incomplete"
    building.mkdir()
    holder = os.open(building, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process is writing it"):
        run(source, tmp_path / "out", renderer)
    os.close(holder)
    assert run(source, tmp_path / "out", renderer)["rows"] >= 1


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, Path]:
    """Dialogues that take the tool a while, and a model."""
    folder = tmp_path_factory.mktemp("large")
    source = write_dialogues(folder / "in.jsonl", make_dialogues(4000))
    source.write_bytes(source.read_bytes() * 2)
    return source, write_model(folder)


def test_a_killed_run_leaves_no_folder_and_the_next_one_makes_the_same(tmp_path, large):
    source, model = large
    flags = ["--input", source, "--tokenizer", model, "--sequence-length", 512, "--workers", 1]
    process = subprocess.Popen(
        command("pack_sft.py", *flags, "--output", tmp_path / "out"), stderr=subprocess.DEVNULL, start_new_session=True
    )
    raw = tmp_path / ".out.incomplete/tokens.raw"
    while not (raw.exists() and raw.stat().st_size):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".out.incomplete"]
    (tmp_path / ".out.incomplete/segment_old.npy").write_bytes(b"rest of the killed run")
    for name in ("out", "never_killed"):
        result = call("pack_sft.py", *flags, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["never_killed", "out"]
    assert contents(tmp_path / "out") == contents(tmp_path / "never_killed")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--sequence-length", "1"], "--sequence-length must be 2 or more"),
        (["--template", "none.yaml"], "none.yaml: No such file"),
        (["--input", "none.jsonl"], "none.jsonl"),
        (["--tokenizer", "none.model"], "none.model: no such file"),
        (["--workers", "-1"], "--workers -1: expected 0 or more processes"),
        (["--seed", "-1"], "--seed 0 or more"),
    ],
)
def test_the_tool_answers_bad_input_with_one_line_and_exit_code_1(tmp_path, large, flags, expected):
    base = ["--input", large[0], "--tokenizer", large[1], "--output", tmp_path / "out"]
    result = call_here("pack_sft.py", *base, *flags)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and expected in last and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_tool_packs_reports_and_finds_its_dataset_again(tmp_path, large):
    source = write_dialogues(tmp_path / "in.jsonl", make_dialogues(50))
    (tmp_path / "t.yaml").write_text('user_prefix: "Q:"\nuser_suffix: "A:"\n')
    flags = [
        "--input",
        source,
        "--tokenizer",
        large[1],
        "--output",
        tmp_path / "out",
        "--template",
        tmp_path / "t.yaml",
    ]
    first, second = call("pack_sft.py", *flags), call_here("pack_sft.py", *flags)
    assert first.returncode == second.returncode == 0 and first.stdout == second.stdout
    assert "up to date" in second.stderr and "lower" not in first.stderr
    assert PackedRows(tmp_path / "out").manifest["template"]["user_prefix"] == "Q:"
