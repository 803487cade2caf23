"""The record of a run: every attempt, what it ran on, how it ended; the log; nothing of the environment."""

import io
import json
import shlex
import subprocess
import sys

import pytest

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import sha256_file
from megatron_chimed.training import run_record
from megatron_chimed.training.run_record import KILLED, RunRecord, Tee, git_state, read_attempts

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_stderr(monkeypatch):
    """The record puts itself before sys.stderr, which pytest wants back."""
    monkeypatch.setattr(sys, "stderr", sys.stderr)


def begin(folder, data=(), iterations=(0, 10), lr=0.1) -> RunRecord:
    record = RunRecord(folder)
    record.begin({"stage": "sft", "megatron": {"lr": lr}}, "sft on 1 x CPU", data, iterations)
    return record


def test_every_attempt_is_kept_with_its_times_iterations_and_end(tmp_path):
    begin(tmp_path).end(SystemExit())
    begin(tmp_path, iterations=(4, 10)).end(InputError("the disk\nis full"))
    begin(tmp_path, iterations=(4, 10))  # killed
    begin(tmp_path, iterations=(8, 10)).end(None)
    attempts = read_attempts(tmp_path)
    outcomes = ["stopped by the trainer, exit code 0", "InputError: the disk is full", KILLED, "finished"]
    assert [one["outcome"] for one in attempts] == outcomes
    assert [one["iterations"] for one in attempts] == [[0, 10], [4, 10], [4, 10], [8, 10]]
    assert [one["ended"] is None for one in attempts] == [False, False, True, False]
    assert all(one["ended"] is None or one["started"] <= one["ended"] for one in attempts)
    log = [line.split(" ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    told = [f"attempt {number} {word}" for number in range(1, 5) for word in ("starts", "ends")]
    assert [line.split(":")[0] for line in log] == [line for line in told if line != "attempt 3 ends"]


def test_an_attempt_holds_code_packages_configuration_and_data(tmp_path):
    packed, corpus = tmp_path / "packed", tmp_path / "corpus_text_document"
    packed.mkdir()
    (packed / "manifest.json").write_text('{"rows": 1}')
    (tmp_path / "corpus.manifest.json").write_text(json.dumps({"bytes": {f"{corpus.name}.bin": 1}}))
    begin(tmp_path / "run", [str(packed), str(corpus), str(packed), "absent"])
    (attempt,) = read_attempts(tmp_path / "run")
    manifests = [packed / "manifest.json", tmp_path / "corpus.manifest.json"]
    assert [one["path"] for one in attempt["data"]] == [str(packed), str(corpus), "absent"]
    assert [one["sha256"] for one in attempt["data"]] == [*map(sha256_file, manifests), None]
    for one, manifest in zip(attempt["data"], manifests, strict=False):
        assert (tmp_path / "run" / one["manifest"]).read_bytes() == manifest.read_bytes()
    packages = json.loads((tmp_path / "run" / attempt["packages"]).read_text())
    assert packages["pytest"] == pytest.__version__ and packages["python"] == sys.version.split()[0]
    assert (tmp_path / "run" / attempt["config"]).read_text() == (tmp_path / "run/config.yaml").read_text()
    assert attempt["world"] == "sft on 1 x CPU" and attempt["code"].keys() == {"version", "git", "dirty"}
    assert attempt["command"] == shlex.join(sys.orig_argv)


def test_what_attempts_share_is_kept_once_and_what_has_changed_beside_it(tmp_path):
    for lr in (0.1, 0.1, 0.2):
        begin(tmp_path, lr=lr)
    assert len(list((tmp_path / "record").glob("packages-*"))) == 1
    assert len(list((tmp_path / "record").glob("config-*"))) == 2
    assert "lr: 0.2" in (tmp_path / "config.yaml").read_text()


def test_no_part_of_the_environment_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    begin(tmp_path).end(None)
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) == 5 and not [text for text in texts if SECRET in text]


def test_only_the_first_rank_writes_and_each_machine_says_its_name(tmp_path, monkeypatch):
    for rank, local in ((1, 1), (2, 0), (3, 1)):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        record = RunRecord(tmp_path, rank, 4)
        record.begin({}, "", [], (0, 1))
        record.end(None)
    print("rank 3 is the last one", file=sys.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert "rank 2 and those after it are on " in first and second.endswith("rank 3 is the last one")


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sys.stderr
    begin(None).end(None)
    assert sys.stderr is before and not list(tmp_path.iterdir())


def test_the_log_has_whole_lines_and_the_last_state_of_a_bar(tmp_path):
    shown = io.StringIO()
    tee = Tee(shown, tmp_path / "log.txt")
    for text in ("one", " line\n", "\r 10%", "\r 20%", "\rvalid 1.5\n", "\r100%", "\n", "no end"):
        tee.write(text)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["one line", "valid 1.5", "100%"]
    assert shown.getvalue() == "one line\n\r 10%\r 20%\rvalid 1.5\n\r100%\nno end"


def test_a_full_disk_does_not_end_a_training_for_its_log(tmp_path, capsys):
    record = begin(tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "run").rmdir()
    (tmp_path / "run").touch()  # nothing can be written below it now
    print("a line", file=sys.stderr)
    record.end(RuntimeError("full"))
    assert "a line" in capsys.readouterr().err


def test_the_commit_and_whether_files_differ_from_it(tmp_path):
    assert git_state(tmp_path) == {"git": None, "dirty": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@localhost"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_state(tmp_path) == {"git": head, "dirty": False}
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed/new.py").touch()
    assert git_state(tmp_path) == {"git": head, "dirty": True}
    assert git_state(tmp_path / "installed") == {"git": None, "dirty": None}  # the checkout is of something else


def test_a_file_that_is_no_record_gives_one_line(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match="run.json: is no record of a run"):
        begin(tmp_path)
    assert run_record.read_attempts(tmp_path / "absent") == []
