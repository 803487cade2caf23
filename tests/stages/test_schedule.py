"""The length of a run from epochs, and the paper's warm-up."""

import math

import pytest
from support.dialogues import make_renderer
from support.rankings import make_groups, write_groups

from megatron_chimed.config import Located
from megatron_chimed.errors import InputError
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings
from megatron_chimed.stages.options import RewardConfig
from megatron_chimed.stages.schedule import by_epochs


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[str, int]:
    """(folder, rows)."""
    folder = tmp_path_factory.mktemp("schedule")
    source = write_groups(folder / "ranked.jsonl", make_groups(90))
    renderer = make_renderer("sentencepiece", folder)
    content = pack_rankings([str(source)], folder / "packed", renderer, RankingRowOptions(128, progress=False))
    return str(folder / "packed"), content["rows"]


def settings(where: str = "stage.yaml:3", **values) -> dict[str, Located]:
    return {name.replace("_", "-"): Located(value, where) for name, value in values.items()}


def test_two_epochs_see_every_row_twice(packed):
    folder, rows = packed
    chosen = by_epochs(RewardConfig(epochs=2), settings(train_data_path=[folder], global_batch_size=8))
    assert chosen["train-iters"] == chosen["lr-decay-iters"] == math.ceil(2 * rows / 8)
    assert 8 * (chosen["train-iters"] - 1) < 2 * rows <= 8 * chosen["train-iters"]
    both = by_epochs(RewardConfig(epochs=1), settings(train_data_path=[folder, folder], global_batch_size="8"))
    assert both["train-iters"] == chosen["train-iters"], "two folders have the rows of both"


@pytest.mark.parametrize(("iterations", "warmup"), [(4, 3), (20, 5), (166, 5), (167, 6), (950, 29)])
def test_the_warm_up_is_three_percent_and_five_steps_at_least(iterations, warmup):
    assert by_epochs(RewardConfig(), settings(train_iters=iterations))["lr-warmup-iters"] == warmup


def test_what_is_given_stays(packed):
    given = settings(train_data_path=[packed[0]], global_batch_size=8, lr_warmup_fraction=0.1, lr_decay_iters=7)
    assert set(by_epochs(RewardConfig(epochs=1), given)) == {"train-iters"}
    given = settings("command line", train_iters=3) | settings(global_batch_size=8)
    assert by_epochs(RewardConfig(epochs=1), given) == {"lr-decay-iters": 3, "lr-warmup-iters": 2}
    assert by_epochs(RewardConfig(), {}) == {}


@pytest.mark.parametrize(
    ("epochs", "given", "message"),
    [
        (1, {"train_iters": 5}, "stage.yaml:3: the length of the run is given here"),
        (0, {"train_data_path": ["x"], "global_batch_size": 8}, "epochs: 0; expected 1 or more"),
        (1, {"global_batch_size": 8}, "needs --train-data-path"),
        (1, {"train_data_path": ["x"]}, "needs --global-batch-size"),
        (1, {"train_data_path": ["0.5", "x"], "global_batch_size": 8}, "weighted"),
        (1, {"train_data_path": ["/nowhere"], "global_batch_size": 8}, "no such folder"),
    ],
)
def test_what_cannot_be_computed_is_one_line(epochs, given, message):
    with pytest.raises(InputError, match=message):
        by_epochs(RewardConfig(epochs=epochs), settings(**given))
