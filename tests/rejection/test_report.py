"""The report's figures: standard errors over prompts, pair by pair, the warning about length, a page of all."""

import math
import random
import statistics
from dataclasses import replace

import pytest
from support.candidates import make_candidate

from megatron_chimed.errors import InputError
from megatron_chimed.records import Candidate
from megatron_chimed.rejection import report
from megatron_chimed.rejection.heldout import by_prompt, difference, mean_over_prompts
from megatron_chimed.rejection.report_page import page, plot
from megatron_chimed.rejection.scorers.command import grade
from megatron_chimed.rejection.store import write_candidates


def answers(shift: float, slope: float = 0.0, seed: int = 0, noise: float = 0.1):
    """Two answers to each of 40 prompts; rewards differ by prompt much more than by answer, lengths by `slope`."""
    random_numbers, lengths, found = random.Random(seed), random.Random(9), []
    for prompt in range(40):
        for sample in range(2):
            tokens = lengths.randrange(10, 90)
            reward = prompt + shift + slope * tokens + random_numbers.gauss(0, noise)
            found.append(replace(make_candidate(f"p{prompt}", sample, reward), num_tokens=tokens))
    return found


def test_a_mean_is_over_prompts_as_answers_to_one_are_alike():
    values = by_prompt(answers(0))
    means = [statistics.fmean(each) for each in values.values()]
    mean = mean_over_prompts(values)
    assert mean == pytest.approx((statistics.fmean(means), statistics.stdev(means) / math.sqrt(40), 40))
    naive = statistics.stdev(one.reward for one in answers(0)) / math.sqrt(80)
    assert mean.error > 1.3 * naive, "the control: answers taken as independent would look more certain"


NOBODY = {"scorers": {}, "graders": {}}


def compare(heldout: dict[str, list[Candidate]]) -> dict:
    """Models compared by the rewards of their answers."""
    return report.compare_heldout({name: by_prompt(each) for name, each in heldout.items()}, heldout)


def test_models_are_compared_pair_by_pair():
    before, after = by_prompt(answers(0)), by_prompt(answers(0.2, seed=1))
    change = difference(after, before)
    assert change.mean == pytest.approx(mean_over_prompts(after).mean - mean_over_prompts(before).mean)
    assert change.mean > 2 * change.error > 0
    assert change.mean < mean_over_prompts(before).error, "unpaired, nothing would be seen"
    del after["p3"]
    assert difference(after, before).prompts == 39


@pytest.mark.parametrize(("slope", "warned"), [(2.0, True), (0.0, False), (-2.0, False)])
def test_a_reward_that_grows_with_length_is_warned_of(slope, warned):
    sets = {"all": report.describe(answers(0, slope))}
    heldout = compare({"start": answers(0), "after": answers(1, seed=1)})
    drift = {name: {"nll": 1.0, "tokens": 5} for name in ("start", "after")}
    found = report.warnings({"sets": sets, "heldout": heldout, "yardstick": None, "drift": drift, **NOBODY})
    assert any("grows with the length" in line for line in found) == warned
    assert len(found) == warned


def test_an_effect_below_two_standard_errors_longer_answers_and_drift_are_warned_of():
    longer = [replace(one, num_tokens=2 * one.num_tokens) for one in answers(0.01, seed=3, noise=1)]
    heldout = compare({"start": answers(0), "after": longer, "random control": answers(-5)})
    drift = {"start": {"nll": 1.0}, "after": {"nll": 1.2}}
    sets = {"all": report.describe(answers(0))}
    found = report.warnings({"sets": sets, "heldout": heldout, "yardstick": None, "drift": drift, **NOBODY})
    assert [line.split(":")[0] for line in found if "standard errors" in line] == ["after - start"]
    assert any("less likely: 1.000 -> 1.200" in line for line in found)
    assert any("got longer" in line for line in found) == (heldout["differences"]["after - start"]["mean"] > 0)


def test_figures_of_nothing_and_of_one_are_none_and_not_wrong():
    assert report.describe([])["mean_reward"] is None
    assert report.describe([make_candidate()])["reward_length_correlation"] is None
    assert report.duplicate_rate([]) == 0
    same = [make_candidate("p0", sample, response=text) for sample, text in enumerate(["a", " A", "b", "a"])]
    assert report.duplicate_rate([*same, make_candidate("p1", 0, response="a")]) == pytest.approx(2 / 5)


JUDGED = {
    "engine": "judge", "answers": 9, "not scored": 3, "clipped mean": 0.5,
    "judges": {"a | b": {"verdicts": {"met": 7, "refused": 2}}, "m2": {"verdicts": {"met": 9}}},
    "agreement": {"kappa": 0.5, "same": 0.75, "verdicts": 8},
}  # fmt: skip


def test_the_page_shows_every_model_strategy_and_warning_and_hostile_text_stays_text(tmp_path):
    sets = {"all": answers(0), "selected": answers(0)[::2]}
    heldout = {"start": answers(0), "after": answers(1)}
    hostile = {"response": "<script>|`x`\n# y", "reward": 1.0, "tokens": 3}
    figures = {
        "round": 1,
        "settings": {"selection": {"k": 5, "threshold": 0.0}},
        "steps": {"prompts": {"rows": 3, "dropped": {"duplicate": 2}}},
        "sets": {name: report.describe(each) for name, each in sets.items()},
        "duplicate_rate": 0.25,
        "strategies": {"top_k": {"chosen": True, "answers": 5, "prompts": 2, "mean_reward": None, "mean_tokens": 1}},
        "heldout": compare(heldout),
        "yardstick": compare({name: answers(3) for name in heldout}),
        "drift": {"start": {"nll": 1.5}, "after": {"nll": None}},
        "examples": [{"question": "问|", "best": hostile, "worst": hostile}],
        "scorers": {"the round's answers": [JUDGED, {"engine": "rules", "answers": 9, "not scored": 0}]},
        "graders": {"held out, after": [JUDGED | {"not scored": 1}]},
        "warnings": ["look here"],
    }
    text = page(figures)
    for shown in ("- look here", "| start | 40 |", "after - start", "top_k (chosen)", "2 duplicate", "25.0%", "1.500"):
        assert shown in text, shown
    assert "\\<script\\>\\|\\`x\\` \\# y" in text and "问\\|" in text and "not measured" in text
    for shown in ("| the round's answers | a \\| b | 7 met, 2 refused | 3 of 9 | 0.500 |", "held out, after | m2 |",
                  "| the round's answers | 8 | 0.750 | 0.500 |", "## Judges"):  # fmt: skip
        assert shown in text, shown
    assert "## Judges" not in page(figures | NOBODY)
    plot(sets, heldout, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_answers_that_could_not_be_scored_are_warned_of_where_they_are_many():
    heldout = compare({"start": answers(0), "after": answers(1, seed=1)})
    drift = {name: {"nll": None} for name in ("start", "after")}
    figures = {"sets": {"all": report.describe(answers(0))}, "heldout": heldout, "yardstick": None, "drift": drift}
    few, many = (JUDGED | {"answers": 100, "not scored": count} for count in (5, 6))
    told = {"scorers": {"the round's answers": [few]}, "graders": {"held out, after": [many]}}
    found = report.warnings(figures | told)
    assert [line.partition(";")[0] for line in found] == ["6 of 100 answers have no score by judge (held out, after)"]


def test_an_external_grader_grades_each_answer_and_worse_answers_are_warned_of(tmp_path):
    write_candidates(tmp_path / "after.jsonl", answers(0))
    script = tmp_path / "grade.py"
    script.write_text(
        "import json, sys\n"
        "for line in open(sys.argv[1], encoding='utf-8'):\n"
        "    row = json.loads(line)\n"
        "    print(json.dumps({'prompt': row['prompt'], 'sample': row['sample'], 'grade': row['num_tokens'] / 100}))\n"
    )
    grades = grade(["python", str(script)], tmp_path / "after.jsonl")
    assert grades == {
        name: [one.num_tokens / 100 for one in answers(0) if one.prompt == name] for name in by_prompt(answers(0))
    }
    worse = {name: [value - 1 for value in values] for name, values in grades.items()}
    heldout = {"start": answers(0), "after": answers(1)}
    graded = report.compare_heldout({"start": grades, "after": worse}, heldout)
    drift = {"start": {"nll": None}, "after": {"nll": None}}
    figures = {"sets": {"all": report.describe(answers(0))}, "heldout": compare(heldout), "drift": drift, **NOBODY}
    assert any(
        "have become worse, after - start: -1.000" in w for w in report.warnings({**figures, "yardstick": graded})
    )
    assert not any("become worse" in w for w in report.warnings({**figures, "yardstick": None}))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('no such world')", "ended with 1: no such world"),
        ("print('good')", 'expected lines of {"prompt", "sample", "grade"}'),
        ("print('{}')", "expected lines of"),
        ("", "no grade for sample"),
    ],
)
def test_an_external_grader_that_fails_is_one_line(tmp_path, script, message):
    write_candidates(tmp_path / "a.jsonl", answers(0))
    with pytest.raises(InputError, match=message):
        grade(["python", "-c", script], tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="external_grader nothing-there: No such file"):
        grade(["nothing-there"], tmp_path / "a.jsonl")
