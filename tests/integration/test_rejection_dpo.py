"""A round whose training is preference optimization: pairs of its own samples, the reference of their model, a control
and a report like any other round's."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import rejection_loop as loop
from support.job import figures

from megatron_chimed.convert.lora import hash_model
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json_lines
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.reference import read_reference
from megatron_chimed.rejection.config import read_config
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.loop import make_rounds, run_loop, status
from megatron_chimed.rejection.store import read_candidates

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    """Of a loop of one round with dpo and its control."""
    folder = tmp_path_factory.mktemp("rejection_dpo")
    settings = loop.write_world(folder) | {"scorer": {"engine": "hf"}, "reward": str(folder / "reward.hf")}
    settings |= {"training": {"ranks": 1, "method": "dpo"}, "control": True, "folder": str(folder)}
    settings["sampling"] |= {"temperature": 1.0}
    stage = yaml.safe_load(Path(settings["stage"]).read_text())["megatron"]
    stage |= {"lr": 1e-3, "train-iters": 10, "save-interval": 100, "eval-iters": 0}
    del stage["valid-data-path"], stage["eval-interval"]  # which upstream cannot do without
    Path(settings["stage"]).write_text(yaml.safe_dump({"megatron": stage, "chimed": {"beta": 0.2}}))
    return settings


@pytest.fixture(scope="module")
def ctx(settings) -> RoundContext:
    """Round 1, done."""
    folder = Path(settings.pop("folder"))
    config = read_config(loop.write_config(folder / "loop.yaml", settings))
    run_loop(config)
    assert "to do" not in status(config) and "stale" not in status(config)
    return make_rounds(config)[1]


def test_the_pairs_are_the_best_and_the_worst_sample_of_each_prompt(ctx):
    rewards = {}
    for one in read_candidates(ctx.file("scored.jsonl")):
        rewards.setdefault(one.prompt, {})[one.response] = one.reward
    rows = [row for _, row in read_json_lines(ctx.file("selected.ranked.jsonl"))]
    for row in rows:
        of_prompt = rewards[row["id"].split("#")[0]]
        better, worse = (of_prompt[response] for response in row["responses"])
        assert better > worse and row["ranks"] == [0, 1]
    control = [row for _, row in read_json_lines(ctx.file("control.ranked.jsonl"))]
    assert len(rows) == len(control) > 3 and rows != control


def test_the_reference_is_of_the_model_that_the_samples_are_of_and_both_trainings_begin_at_log_2(ctx):
    for name in ctx.sets:
        reference = read_reference(PackedRows(ctx.file(f"packed/{name}")))
        assert reference.model == hash_model(ctx.previous.checkpoint)
        losses = [float(value) for _, value, _ in figures(ctx.file(f"train/{name}"), name="preference loss")]
        assert losses[0] == pytest.approx(np.log(2), abs=1e-4) and losses[-1] < losses[0]


def test_the_report_compares_the_round_with_its_control(ctx):
    report = json.loads(ctx.file("report.json").read_text())
    assert report["heldout"] and ctx.file("report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": {"strategy": "top_k"}}, "selection.strategy: expected best_of_n, for pairs of dpo"),
        ({"sampling": {"n": 1}}, "sampling.n: expected 2 or more, for pairs of dpo"),
    ],
)
def test_what_makes_no_pairs_is_refused(settings, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_config(
            loop.write_config(tmp_path / "loop.yaml", {k: v for k, v in settings.items() if k != "folder"} | changes)
        )
