"""Differences of two evaluated models, and multiple choice by the text of the options."""

import numpy as np
import pytest
from support.exam_files import write_ceval
from support.exam_models import Scripted, guess, is_right, scripted

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.reports.compare import bootstrap_difference, paired_difference
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.evaluation.statistics import f1_ratio, mean_ratio
from megatron_chimed.jsonl import read_json_lines
from megatron_chimed.text.template import Template

SUM = np.random.default_rng(0).integers(0, 2, size=(2, 80)).astype(float)


def evaluate(folder, answer, likelihood=lambda item, prompt, option: 0.0, **settings):
    """Evaluate a scripted model on C-Eval's files in `folder`."""
    backend = Scripted(lambda item, prompt: answer(item), likelihood)
    return evaluate_model(
        scripted(backend), [f"ceval={folder}"], folder / "out", Settings(runs=1, **settings), Template(), progress=False
    )["tasks"]


def in_pairs(values: np.ndarray) -> np.ndarray:
    """[2, items] -> [2, items, 2]: value and 1."""
    return np.stack([values, np.ones_like(values)], axis=-1)


def test_a_difference_of_means_is_the_mean_of_differences_with_its_standard_error():
    found = bootstrap_difference(in_pairs(SUM), mean_ratio, 100.0)
    by_hand = 100 * (SUM[0] - SUM[1])
    assert found.value == pytest.approx(by_hand.mean()) and found.n == 80
    assert found.error == pytest.approx(by_hand.std() / np.sqrt(80), rel=0.1)
    assert found.low == pytest.approx(found.value - 1.96 * found.error, abs=2.5)
    assert found.high == pytest.approx(found.value + 1.96 * found.error, abs=2.5)


def test_models_that_err_on_the_same_items_differ_by_nothing_but_two_independent_ones_are_uncertain():
    same = bootstrap_difference(in_pairs(np.stack([SUM[0], SUM[0]])), mean_ratio)
    assert (same.value, same.error, same.low, same.high) == (0, 0, 0, 0)
    assert bootstrap_difference(in_pairs(SUM), mean_ratio).error > 0.05


def test_where_one_has_no_value_there_is_no_difference():
    values = in_pairs(SUM)
    values[0] = 0  # no item counts
    assert np.isnan(bootstrap_difference(values, mean_ratio)[:4]).all()


def test_a_difference_of_f1_is_not_the_mean_of_differences():
    values = np.array([[[1, 1, 1], [0, 3, 1]], [[0, 1, 1], [1, 1, 1]]], dtype=float)
    assert bootstrap_difference(values, f1_ratio).value == pytest.approx(2 * 1 / 6 - 2 * 1 / 4)


def test_two_folders_are_compared_by_item_and_other_items_are_refused(tmp_path):
    for name, answer in (("good", lambda item: "ABCD"[item["answer"]]), ("bad", lambda item: "A")):
        write_ceval(tmp_path / name, count=12)
        evaluate(tmp_path / name, answer)
    found = paired_difference(tmp_path / "good/out", tmp_path / "bad/out", "ceval_letter", "acc")
    rows = [row for _, row in read_json_lines(tmp_path / "bad/out/samples/ceval_letter.0.jsonl")]
    assert found.value == pytest.approx(100 - 100 * np.mean([row["scores"]["acc"] for row in rows])) and found.n == 24
    assert 0 < found.low < found.value < found.high <= 100
    evaluate(write_ceval(tmp_path / "fewer", count=12), lambda item: "A", limit=3)
    with pytest.raises(InputError, match="not answered the same items"):
        paired_difference(tmp_path / "good/out", tmp_path / "fewer/out", "ceval_letter", "acc")


def test_multiple_choice_by_text_shows_no_options_and_is_the_largest_likelihood_by_sum_and_by_character(tmp_path):
    draws = {}

    def likelihood(item, prompt, option):
        draws[prompt, option] = -10 * guess(prompt, option).random()
        return draws[prompt, option]

    tasks = evaluate(write_ceval(tmp_path, count=20), lambda item: "", likelihood)
    texts = {option for _, option in draws if option.strip() not in "ABCD"}
    assert texts and not any(option.startswith(" ") for option in texts)
    right = {"acc": [], "acc_norm": []}
    for _, row in read_json_lines(tmp_path / "out/samples/ceval_cloze.0.jsonl"):
        drawn = {draws[prompt, option]: option for prompt, option in draws if prompt == row["prompt"]}
        options = [drawn[row["answer"][letter]] for letter in "ABCD"]
        assert len(options) == 4 and not any(f". {option}" in row["prompt"] for option in options)
        by_hand = [draws[row["prompt"], option] for option in options]
        gold = "ABCD".index(row["gold"])
        right["acc"].append(max(range(4), key=by_hand.__getitem__) == gold)
        right["acc_norm"].append(max(range(4), key=lambda n: by_hand[n] / len(options[n])) == gold)
    assert {name: 100 * np.mean(one) for name, one in right.items()} == {
        name: pytest.approx(one["mean"]) for name, one in tasks["ceval_cloze"]["metrics"].items()
    }


def test_a_model_that_knows_the_text_and_no_letter_is_at_100_by_text_alone(tmp_path):
    def likelihood(item, prompt, option):
        return float(is_right(item, option) and option.strip() not in "ABCD")

    tasks = evaluate(write_ceval(tmp_path), lambda item: "", likelihood)
    assert tasks["ceval_cloze"]["metrics"]["acc_norm"]["mean"] == 100 > tasks["ceval"]["metrics"]["acc"]["mean"]
