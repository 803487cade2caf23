"""A training with W&B offline, and with TensorBoard where it is installed: our figures arrive, no key is written."""

import importlib.util

import pytest
from support.job import Job, write_corpus

from megatron_chimed.training.runlog import read_log

KEY = "0123456789abcdef0123456789abcdef01234567"
HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a job that has run for two iterations and an evaluation."""
    folder = tmp_path_factory.mktemp("tracked")
    job = Job(folder, stage={"data-path": str(write_corpus(folder)), "train-iters": 2, "eval-interval": 2})
    words = ["--save", folder / "run", "--wandb-project", "tests", "--wandb-exp-name", "tiny"]
    words += ["--tensorboard-dir", folder / "tensorboard"] if HAS_TENSORBOARD else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("HOME", str(folder))
        job.run(*words, ranks=1)
    return folder


def expected(folder) -> set[tuple[str, str]]:
    """(name, value in all digits) of every row of loss.csv."""
    return {(f"{row['split']}/{row['name']}", row["value"]) for row in read_log(folder / "run/loss.csv")}


def records(path) -> bytes:
    """The content of a .wandb file: 7 bytes, then chunks as in a LevelDB log, none across a border of 32 KiB, each with
    a head of 7 bytes (checksum, length, kind)."""
    data, place, found = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        found += data[place + 7 : place + 7 + length]
        place += 7 + length
    return found


def test_wandb_has_every_figure_of_loss_csv_also_without_tensorboard(folder):
    (path,) = folder.glob("run/wandb/**/*.wandb")
    found, wanted = records(path), expected(folder)
    assert {name for name, _ in wanted} == {"train/lm loss", "valid/lm loss", "final_valid/lm loss"}
    assert not [pair for pair in wanted if not all(word.encode() in found for word in pair)]


def test_no_file_holds_the_key(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="the package tensorboard is not installed (extra `tracking`)")
def test_tensorboard_has_every_figure_of_loss_csv(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name, value in expected(folder):
        assert float(value) in [pytest.approx(event.value, rel=1e-6) for event in events.Scalars(name)]
