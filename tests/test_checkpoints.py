"""Which checkpoint a run continues from."""

import pytest

from megatron_chimed.checkpoints import TRACKER, latest_iteration
from megatron_chimed.errors import InputError


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
