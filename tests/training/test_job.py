"""What is settled before the ranks start: the lock on --save, and that the checkpoint to be loaded is whole."""

import os
import signal
import subprocess
import sys

import pytest

from megatron_chimed import checkpoints
from megatron_chimed.errors import InputError
from megatron_chimed.steps import lock_folder
from megatron_chimed.training.job import prepare

HOLD = "import sys, time; from megatron_chimed.steps import lock_folder; "
HOLD += "lock_folder(sys.argv[1], '--save'); print('locked', flush=True); time.sleep(600)"


def words(folder, **settings):
    """The words of a job."""
    (folder / "model.yaml").write_text("megatron: {num-layers: 2}")
    lines = "".join(f"  {key}: {value}\n" for key, value in settings.items())
    (folder / "stage.yaml").write_text("megatron:\n" + (lines or "  {}"))
    return ["pretrain", str(folder / "model.yaml"), str(folder / "stage.yaml")]


def checkpoint(folder, iteration, damaged=False):
    path = checkpoints.path_of(folder, iteration)
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_text("weights")
    checkpoints.write_manifest(path, checkpoints.hash_files(path, ["__0_0.distcp"]))
    if damaged:
        (path / "__0_0.distcp").write_text("wreck")
    (folder / checkpoints.TRACKER).write_text(str(iteration))


def test_a_job_is_refused_while_another_one_has_the_folder_and_a_kill_leaves_no_lock(tmp_path):
    job = words(tmp_path, save=tmp_path / "run")
    command = [sys.executable, "-c", HOLD, tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(InputError, match=rf"another job is running there \(process {other.pid} on .*--save"):
                prepare(job)
        finally:
            other.send_signal(signal.SIGKILL)
    os.close(prepare(job))


def test_two_folders_do_not_keep_each_other_out(tmp_path):
    handles = [lock_folder(tmp_path / name, "--save") for name in "ab"]
    with pytest.raises(InputError, match=f"another job is running there .process {os.getpid()} on"):
        lock_folder(tmp_path / "b", "--save")
    for handle in handles:
        os.close(handle)


def test_a_job_falls_back_to_the_whole_checkpoint_with_a_warning(tmp_path, capsys):
    checkpoint(tmp_path / "run", 5)
    checkpoint(tmp_path / "run", 10, damaged=True)
    os.close(prepare([*words(tmp_path), "--save", str(tmp_path / "run")]))
    assert capsys.readouterr().err.count("warning: ") == 1
    assert checkpoints.latest_iteration(tmp_path / "run") == 5


def test_a_damaged_checkpoint_of_another_run_is_refused_and_left_as_it_is(tmp_path):
    checkpoint(tmp_path / "base", 5)
    checkpoint(tmp_path / "base", 10, damaged=True)
    job = words(tmp_path, load=tmp_path / "base", save=tmp_path / "run")
    with pytest.raises(
        InputError, match="iter_0000010: __0_0.distcp has 5 bytes instead of 7; there is also iteration"
    ):
        prepare(job)
    assert checkpoints.iterations(tmp_path / "base") == [5, 10]
    checkpoint(tmp_path / "run", 1)  # from here on --load is not read
    os.close(prepare(job))


@pytest.mark.parametrize("damaged", ["base", "lora"])
def test_of_adapters_and_a_named_base_both_are_checked(tmp_path, damaged):
    for name in ("base", "lora"):
        checkpoint(tmp_path / name, 5, damaged=name == damaged)
    job = words(tmp_path, load=f"{tmp_path}/base+{tmp_path}/lora", save=tmp_path / "run")
    with pytest.raises(InputError, match=rf"{damaged}/iter_0000005: __0_0.distcp has 5 bytes instead of 7"):
        prepare(job)


@pytest.mark.parametrize("wrong", [[], ["pretrain", "/no/model.yaml", "/no/stage.yaml"]])
def test_wrong_words_are_left_to_the_ranks(wrong):
    assert prepare(wrong) is None


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match="--save /proc/none: cannot be written"):
        prepare(words(tmp_path, save="/proc/none"))
