"""Which checkpoint a run continues from, which are whole, and which are kept."""

import re
import shutil

import pytest

from megatron_chimed import checkpoints
from megatron_chimed.checkpoints import TRACKER, latest_iteration
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json, write_json


def checkpoint(folder, iteration, whole=True):
    path = folder / f"iter_{iteration:07d}"
    path.mkdir(parents=True)
    if whole:
        (path / "metadata.json").write_text("{}")


def test_a_folder_without_a_tracker_has_no_checkpoint(tmp_path):
    checkpoint(tmp_path, 5, whole=False)
    assert latest_iteration(tmp_path) == 0
    assert latest_iteration(tmp_path / "missing") == 0


@pytest.mark.parametrize(("text", "iteration"), [("20", 20), ("20\n", 20), ("release", 0)])
def test_the_tracker_tells(tmp_path, text, iteration):
    (tmp_path / TRACKER).write_text(text)
    assert latest_iteration(tmp_path) == iteration


def test_an_empty_tracker_is_mended_from_the_whole_checkpoints(tmp_path):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 15, whole=False)
    (tmp_path / TRACKER).write_text("")
    assert latest_iteration(tmp_path) == 10
    assert (tmp_path / TRACKER).read_text() == "10"


def test_a_tracker_that_holds_no_number_is_refused(tmp_path):
    (tmp_path / TRACKER).write_text("ten")
    with pytest.raises(InputError, match="holds 'ten'; expected an iteration number"):
        latest_iteration(tmp_path)


def whole(folder, iteration, content=b"weights"):
    """A checkpoint with a manifest, as the latest one; its folder."""
    path = checkpoints.path_of(folder, iteration)
    path.mkdir(parents=True)
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata", "metadata.json"):
        (path / name).write_bytes(name.encode() + content)
    names = [file.name for file in path.iterdir()]
    checkpoints.write_manifest(path, checkpoints.hash_files(path, names))
    (folder / TRACKER).write_text(str(iteration))
    return path


def flip(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


DAMAGES = {
    "__1_0.distcp has other bytes": lambda path: flip(path / "__1_0.distcp"),
    r"\.metadata has 0 bytes instead of 16": lambda path: (path / ".metadata").write_bytes(b""),
    "__0_0.distcp is missing": lambda path: (path / "__0_0.distcp").unlink(),
    "integrity.json is no manifest": lambda path: (path / "integrity.json").write_text("{}"),
    "its save was cut off": lambda path: [(path / name).unlink() for name in ("integrity.json", "metadata.json")],
    "it is missing": shutil.rmtree,
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_latest_checkpoint_is_set_aside_for_the_one_before_it(tmp_path, message):
    whole(tmp_path, 5)
    path = whole(tmp_path, 10)
    assert checkpoints.fall_back(tmp_path) is None
    DAMAGES[message](path)
    warning = checkpoints.fall_back(tmp_path)
    assert re.search(f"iter_0000010: {message}", warning) and warning.endswith("continuing from iteration 5")
    assert latest_iteration(tmp_path) == 5 and checkpoints.iterations(tmp_path) == [5]
    assert path.with_name("damaged_iter_0000010").exists() == (message != "it is missing")
    assert checkpoints.fall_back(tmp_path) is None


def test_what_is_set_aside_twice_is_there_twice(tmp_path):
    whole(tmp_path, 5)
    for _ in range(2):
        flip(whole(tmp_path, 10) / ".metadata")
        checkpoints.fall_back(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("damaged_*")) == [
        "damaged_iter_0000010",
        "damaged_iter_0000010_1",
    ]


def test_several_damaged_checkpoints_are_passed_over_and_newer_ones_than_the_latest_are_left(tmp_path):
    for iteration in (5, 10, 15, 20):
        path = whole(tmp_path, iteration)
        if iteration > 5:
            flip(path / ".metadata")
    (tmp_path / TRACKER).write_text("15")  # someone went back
    assert "continuing from iteration 5" in checkpoints.fall_back(tmp_path)
    assert checkpoints.iterations(tmp_path) == [5, 20]


def test_without_a_whole_checkpoint_nothing_is_renamed_and_the_start_is_refused(tmp_path):
    path = whole(tmp_path, 5)
    flip(path / ".metadata")
    with pytest.raises(InputError, match="no whole checkpoint before it; bring a copy back, or remove"):
        checkpoints.fall_back(tmp_path)
    assert path.exists() and latest_iteration(tmp_path) == 5


def test_a_checkpoint_of_another_tool_is_taken_as_it_is(tmp_path):
    legacy = checkpoints.path_of(tmp_path, 5) / "mp_rank_00"
    legacy.mkdir(parents=True)
    (legacy / "model_optim_rng.pt").write_bytes(b"weights")
    (tmp_path / TRACKER).write_text("5")
    assert checkpoints.fall_back(tmp_path) is None
    upstream = whole(tmp_path, 10)  # --verify-integrity writes no sizes
    content = read_json(upstream / "integrity.json")
    del content["bytes"]
    write_json(upstream / "integrity.json", content)
    assert checkpoints.find_damage(upstream) is None
    flip(upstream / ".metadata")
    assert ".metadata has other bytes" in checkpoints.find_damage(upstream)


@pytest.mark.parametrize(
    ("keep", "interval", "left"),
    [
        (0, None, [5, 10, 15, 20, 25]),
        (1, None, [5, 20, 25]),
        (2, None, [5, 15, 20, 25]),
        (1, 10, [5, 10, 20, 25]),
        (9, None, [5, 10, 15, 20, 25]),
    ],
)
def test_the_newest_checkpoints_are_kept(tmp_path, keep, interval, left):
    """5 is of another tool, and 25 is newer than the latest: its save goes on."""
    for iteration in (5, 10, 15, 20, 25):
        path = whole(tmp_path, iteration)
    (checkpoints.path_of(tmp_path, 5) / "integrity.json").unlink()
    (path / "integrity.json").unlink()
    (tmp_path / TRACKER).write_text("20")
    (tmp_path / ".deleted_iter_0000001").mkdir()
    checkpoints.retain(tmp_path, keep, interval)
    assert checkpoints.iterations(tmp_path) == left
    assert (tmp_path / ".deleted_iter_0000001").exists() == (keep == 0)


def test_no_checkpoint_is_ever_seen_half_deleted(tmp_path, monkeypatch):
    path = whole(tmp_path, 5)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda folder, **_: None)  # a kill before the first file is gone
    checkpoints.discard(path)
    assert not path.exists() and not checkpoints.iterations(tmp_path)


def test_a_checkpoint_is_found_from_its_run_by_itself_or_alone(tmp_path):
    checkpoint(tmp_path, 250)
    path = checkpoints.path_of(tmp_path, 250)
    assert checkpoints.resolve(tmp_path) == checkpoints.resolve(path) == checkpoints.resolve(tmp_path, 250) == path
    (tmp_path / "other" / "release").mkdir(parents=True)
    assert checkpoints.resolve(tmp_path / "other") == checkpoints.resolve(tmp_path / "other" / "release")


def test_what_is_no_checkpoint_is_said_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"holds no checkpoint \(no iter_\.\.\., no release\); give a run's folder"):
        checkpoints.resolve(tmp_path)
    checkpoint(tmp_path, 5)
    (tmp_path / "release").mkdir()
    with pytest.raises(InputError, match=r"is missing; give --iteration, one of iter_0000005, or give .*/release"):
        checkpoints.resolve(tmp_path)
    (tmp_path / TRACKER).write_text("ten")
    with pytest.raises(InputError, match=r"holds 'ten', no iteration; give --iteration, .*, or give .*/release"):
        checkpoints.resolve(tmp_path)
    with pytest.raises(InputError, match=r"has no iter_0000007; there is iter_0000005, release"):
        checkpoints.resolve(tmp_path, 7)


@pytest.mark.parametrize("name", ["iter_0000010", "release"])
def test_megatrons_older_format_is_named(tmp_path, name):
    (tmp_path / name / "mp_rank_00").mkdir(parents=True)
    (tmp_path / name / "mp_rank_00" / "model_optim_rng.pt").write_bytes(b"weights")
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=r"model_optim_rng\.pt: Megatron's older format .* torch_dist"):
            checkpoints.resolve(place)


def test_the_trainer_is_told_how_to_load_one_of_several(tmp_path):
    checkpoint(tmp_path, 250)
    path = checkpoints.path_of(tmp_path, 250)
    with pytest.raises(InputError, match=f"--load {path}: no .*; give --load {tmp_path} --ckpt-step 250"):
        checkpoints.require_loadable(path)
    with pytest.raises(InputError, match="give a run's --save"):
        checkpoints.require_loadable(tmp_path)
    (tmp_path / TRACKER).write_text("250")
    checkpoints.require_loadable(tmp_path)
