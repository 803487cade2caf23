"""Whether two models differ: the test against slower ones, its correction, and the number of items it takes."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest
from support.exam_files import write_ceval
from support.exam_models import Scripted, scripted

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.reports.compare import bootstrap_difference
from megatron_chimed.evaluation.reports.differences import (
    LEVEL,
    POWER,
    compare_results,
    holm,
    items_needed,
    permutation_p,
    verdict_lines,
)
from megatron_chimed.evaluation.reports.report import write_report
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.evaluation.statistics import f1_ratio, mean_ratio
from megatron_chimed.jsonl import read_json
from megatron_chimed.text.template import Template


def in_pairs(values: np.ndarray) -> np.ndarray:
    """[2, items] -> [2, items, 2]: value and 1."""
    return np.stack([values, np.ones_like(values)], axis=-1)


@pytest.mark.parametrize("ratio", [mean_ratio, f1_ratio])
def test_p_is_the_share_of_all_changes_of_places_that_differ_as_much(ratio):
    draw = np.random.default_rng(3)
    gold = draw.integers(1, 4, size=9)
    right = draw.binomial(gold, [[0.9], [0.4]])
    values = (
        np.stack([right, *([np.broadcast_to(gold, right.shape)] * (1 if ratio is mean_ratio else 2))], axis=-1) * 1.0
    )
    found, large = abs(np.subtract(*ratio(values.sum(axis=1)))), 0
    for places in itertools.product((0, 1), repeat=9):  # all 512
        one = np.stack([values[place, number] for number, place in enumerate(places)]).sum(axis=0)
        other = np.stack([values[1 - place, number] for number, place in enumerate(places)]).sum(axis=0)
        large += abs(ratio(one) - ratio(other)) >= found - 1e-12
    assert permutation_p(values, ratio) == pytest.approx(large / 512, abs=0.015)


def test_p_of_right_and_wrong_answers_is_that_of_mcnemars_exact_test():
    draw = np.random.default_rng(0)
    for share in (0.5, 0.6, 0.7):
        values = np.stack([draw.random(120) < share, draw.random(120) < 0.5]).astype(float)
        one, other = (int((values[a] > values[1 - a]).sum()) for a in (0, 1))
        exact = binomtest(one, one + other).pvalue
        assert permutation_p(in_pairs(values), mean_ratio) == pytest.approx(exact, abs=0.02)


def test_models_that_are_alike_are_told_apart_in_one_of_twenty_cases():
    draw = np.random.default_rng(1)
    shares = [permutation_p(in_pairs((draw.random((2, 60)) < 0.5).astype(float)), mean_ratio) for _ in range(150)]
    assert 0.0 <= np.mean(np.array(shares) < LEVEL) <= 0.11


def test_holm_is_the_largest_of_the_smaller_ones_each_times_the_tests_that_are_left():
    values = [0.001, 0.2, 0.01, 0.04, 0.03]
    by_hand = []
    for value in values:
        smaller = [one for one in values if one <= value]
        by_hand.append(min(1.0, max(one * sum(other >= one for other in values) for one in smaller)))
    assert holm(values) == pytest.approx(by_hand) and holm([]) == [] and holm([0.5, 0.6, 0.9]) == [1.0, 1.0, 1.0]


def test_so_many_items_show_the_difference_with_the_power_that_is_promised():
    draw = np.random.default_rng(2)
    pilot = (draw.random((2, 4000)) < [[0.62], [0.57]]).astype(float)
    count = items_needed(bootstrap_difference(in_pairs(pilot), mean_ratio, 100.0), 5.0)
    assert 1200 < count < 1900
    seen = 0
    for _ in range(400):
        pair = (draw.random((2, count)) < [[0.62], [0.57]]).astype(float)
        gap = pair[0] - pair[1]
        seen += abs(gap.mean()) > 1.96 * gap.std(ddof=1) / math.sqrt(count)
    assert seen / 400 == pytest.approx(POWER, abs=0.06)
    same = bootstrap_difference(in_pairs(np.stack([pilot[0], pilot[0]])), mean_ratio)
    assert items_needed(same, 5.0) is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three models on C-Eval: one that knows, one that says A, one that says A with other words."""
    folder = tmp_path_factory.mktemp("models")
    write_ceval(folder / "ceval", count=30)
    answers = {"good": lambda item: "ABCD"[item["answer"]], "a": lambda item: "A", "also a": lambda item: "选A"}
    for name, answer in answers.items():
        backend = Scripted(lambda item, prompt, answer=answer: answer(item))
        model, settings = scripted(backend, name), Settings(runs=2)
        evaluate_model(model, [f"ceval={folder / 'ceval'}"], folder / name, settings, Template(), progress=False)
    return folder


def test_a_report_says_for_each_task_which_model_is_better_and_what_it_would_take(folders, tmp_path):
    written = write_report([folders / "a", folders / "good", folders / "also a"], tmp_path, points=5)
    assert written[-1].name == "comparison.json"
    content = read_json(tmp_path / "comparison.json")
    found = {(one["task"], one["other"]): one for one in content["comparisons"]}
    assert len(found) == 3 * 2
    letter = found["ceval_letter", "good"]
    assert letter["verdict"] == "good scores higher" and letter["corrected"] == pytest.approx(6 * letter["p"])
    assert letter["value"] < letter["high"] < 0 and letter["items_needed"] > 60 == letter["n"]
    assert found["ceval_letter", "also a"]["verdict"] == "no difference shown"
    assert found["ceval_letter", "also a"]["items_needed"] is None and found["ceval", "good"]["p"] == 1.0
    lines = verdict_lines(content)
    assert any(line.startswith("ceval_letter (acc), a against good: good scores higher (-") for line in lines)
    assert f"5 points would take {letter['items_needed']:,} items, there are 60" in "\n".join(lines)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Do they differ?" in text and "| ceval_letter | acc | a less good | -" in text


def test_models_that_cannot_be_compared_are_said_to_be_so(folders, tmp_path):
    results = [read_json(folders / name / "results.json") for name in ("good", "a")]
    (none, *_) = compare_results(results, [folders / "good", tmp_path], 2.0)
    assert none.verdict == "no samples are kept" and none.difference is None
    model = scripted(Scripted(lambda item, prompt: "A"), "fewer")
    flags, settings = [f"ceval={folders / 'ceval'}"], Settings(runs=1, limit=3)
    fewer = evaluate_model(model, flags, tmp_path / "fewer", settings, Template(), progress=False)
    (other, *_) = compare_results([results[0], fewer], [folders / "good", tmp_path / "fewer"], 2.0)
    assert other.verdict == "not the same items"
    with pytest.raises(InputError, match="--points is 0; expected a number above 0"):
        write_report([folders / "good", folders / "a"], tmp_path, points=0)
