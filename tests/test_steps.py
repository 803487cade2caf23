"""Steps: run once, run again when a parent or an output has changed, one job at a time; models told apart cheaply."""

import subprocess
import sys

import pytest

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json
from megatron_chimed.steps import SAMPLED, Step, StepResult, fingerprint, identify, locked, run_step, state_of


@pytest.fixture
def step(tmp_path):
    """A step that copies a.txt to b.txt, and remembers how often."""
    runs = []

    def run(inputs_hash: str) -> StepResult:
        runs.append(inputs_hash)
        (tmp_path / "b.txt").write_text((tmp_path / "a.txt").read_text())
        return StepResult(3, {"empty": 1}, {"pool": 4})

    def progress() -> str:
        return "half" if (tmp_path / "half").exists() else ""

    (tmp_path / "a.txt").write_text("one")
    inputs, settings = {"a": [tmp_path / "a.txt"]}, {"n": 1}
    made = Step(
        "copy", "a test", tmp_path / "copy.manifest.json", inputs, settings, [tmp_path / "b.txt"], run, progress
    )
    return made, runs


def test_a_step_is_run_once_and_its_manifest_says_what_it_made(tmp_path, step):
    copy, runs = step
    assert state_of(copy).name == "to do"
    assert run_step(copy, "round 1") and not run_step(copy, "round 1") and len(runs) == 1
    assert (state_of(copy).name, state_of(copy).detail) == ("done", "3 rows; dropped: 1 empty")
    content = read_json(copy.manifest)
    assert (content["rows"], content["dropped"], content["pool"]) == (3, {"empty": 1}, 4)
    assert content["sha256"] == {"b.txt": identify(tmp_path / "b.txt")}


@pytest.mark.parametrize("change", ["input", "setting", "output", "gone"])
def test_whatever_changes_makes_it_stale_and_it_is_run_again(tmp_path, step, change):
    copy, runs = step
    run_step(copy, "round 1")
    if change == "setting":
        copy.settings["n"] = 2
    elif change == "gone":
        (tmp_path / "b.txt").unlink()
    else:
        (tmp_path / {"input": "a.txt", "output": "b.txt"}[change]).write_text("three")
    state = state_of(copy)
    named = {"input": "a", "setting": "settings", "output": "b.txt", "gone": "b.txt"}[change]
    assert state.name == "stale" and state.detail == f"changed: {named}"
    assert run_step(copy, "round 1") and state_of(copy).name == "done" and len(runs) == 2
    assert (runs[0] == runs[1]) == (change in ("output", "gone"))


def test_an_interrupted_step_is_partial_and_a_missing_input_is_named(tmp_path, step):
    copy, _ = step
    (tmp_path / "half").touch()
    assert (state_of(copy).name, state_of(copy).detail) == ("partial", "half")
    run_step(copy, "round 1")
    (tmp_path / "a.txt").unlink()
    assert state_of(copy).name == "stale" and "a.txt: no such file" in state_of(copy).detail
    with pytest.raises(InputError, match="a.txt: no such file"):
        run_step(copy, "round 1")


def test_a_step_that_fails_leaves_no_manifest(tmp_path, step):
    copy, _ = step
    run_step(copy, "round 1")
    (tmp_path / "a.txt").write_text("two")
    failing = Step(
        copy.name, copy.made_by, copy.manifest, copy.inputs, copy.settings, copy.outputs, lambda inputs_hash: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run_step(failing, "round 1")
    assert state_of(copy).name == "to do"


def test_two_jobs_in_one_folder_refuse_each_other(tmp_path):
    code = (
        "import pathlib, sys\nfrom megatron_chimed.steps import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "in\n"
    with pytest.raises(InputError, match="another job is running there"), locked(tmp_path):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def write_checkpoint(folder, iteration: int, content: bytes) -> None:
    place = folder / f"iter_{iteration:07}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "__0_0.distcp").write_bytes(content)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(iteration))


def test_a_fingerprint_tells_models_apart_by_names_sizes_and_ends(tmp_path):
    content = bytes(3 * SAMPLED)
    write_checkpoint(tmp_path / "run", 5, content)
    seen = [fingerprint(tmp_path / "run")]
    for changed in (b"\x01" + content[1:], content[:-1] + b"\x01", content[:-1]):
        write_checkpoint(tmp_path / "run", 5, changed)
        seen.append(fingerprint(tmp_path / "run"))
    write_checkpoint(tmp_path / "run", 6, content)
    assert fingerprint(tmp_path / "run") == seen[0], "the same weights under another iteration are the same model"
    (tmp_path / "run/iter_0000006/__0_0.distcp").rename(tmp_path / "run/iter_0000006/other")
    assert len({*seen, fingerprint(tmp_path / "run")}) == 5
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no model there"):
        fingerprint(tmp_path / "empty")
