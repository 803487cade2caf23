"""Rubrics: points, those below 0, the clipped mean, and the two forms of files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.candidates import make_prompt
from support.judging import HEALTHBENCH, write_healthbench, write_rubric

from megatron_chimed.errors import InputError
from megatron_chimed.judging.rubric import Criterion, Rubrics, clipped_mean, score, scores_by_tag
from megatron_chimed.rejection.prompts import read_prompts

RUBRIC = st.lists(
    st.builds(Criterion, st.just("x"), st.integers(-10, 10).map(float), st.sets(st.sampled_from("abc")).map(tuple)),
    min_size=1,
    max_size=8,
)  # fmt: skip


@given(RUBRIC, st.randoms(use_true_random=False))
def test_a_score_is_the_points_met_over_all_points_above_0(rubric, draw):
    met = [draw.random() < 0.5 for _ in rubric]
    reached = most = 0
    for criterion, is_met in zip(rubric, met, strict=True):
        if is_met:
            reached += criterion.points
        if criterion.points > 0:
            most += criterion.points
    assert score(rubric, met) == (None if most == 0 else pytest.approx(reached / most))
    found = scores_by_tag(rubric, met)
    for tag in "abc":
        part = [(one, is_met) for one, is_met in zip(rubric, met, strict=True) if tag in one.tags]
        expected = score(*map(list, zip(*part, strict=True))) if part else None
        assert found.get(tag) == expected


def test_points_below_0_count_against_an_answer_and_not_among_what_can_be_reached():
    rubric = [Criterion("good", 4.0), Criterion("also good", 1.0), Criterion("bad", -8.0)]
    assert score(rubric, [True, True, False]) == 1.0
    assert score(rubric, [True, False, False]) == 0.8
    assert score(rubric, [False, False, True]) == -1.6, "an answer is not clipped: it would be as good as an empty one"


def test_only_the_mean_is_clipped_as_in_healthbench():
    assert clipped_mean([-1.6, 0.8]) == 0.0 and clipped_mean([1.0, -0.5]) == 0.25 and clipped_mean([1.2, 1.1]) == 1.0
    each_clipped = (0.0 + 0.8) / 2
    assert clipped_mean([-1.6, 0.8]) != each_clipped, "the control: clipped answer by answer it would be more"
    assert clipped_mean([]) is None


def test_a_yaml_is_the_rubric_of_all_prompts(tmp_path):
    prompts = {name: make_prompt(name, id=name) for name in "ab"}
    rubrics = Rubrics.read(write_rubric(tmp_path / "r.yaml", [("good", 2, ["x"]), ("bad", -1.5, [])])).of(prompts)
    assert rubrics == dict.fromkeys("ab", (Criterion("good", 2.0, ("x",)), Criterion("bad", -1.5)))


@pytest.mark.parametrize("name", ["h.jsonl", "h.json"])
def test_healthbenchs_form_gives_each_prompt_its_own_rubric_by_id_or_by_its_messages(tmp_path, name):
    path = write_healthbench(tmp_path / name)
    first, second = (
        tuple(Criterion(one["criterion"], one["points"], tuple(one["tags"])) for one in row["rubrics"])
        for row in HEALTHBENCH
    )
    told = {
        "h0": make_prompt("something else", id="h0"),
        "other": make_prompt("胃 痛", "多久了?", "三天", id="other"),  # width and spaces do not matter
    }
    assert Rubrics.read(path).of(told) == {"h0": first, "other": second}
    lost = told | {"x": make_prompt("胃痛", id="x"), "y": make_prompt("胃痛", "多久了？", "四天", id="y")}
    with pytest.raises(InputError, match=f"{name}: no rubric for 2 of 4 prompts, the first of them 'x'; give each"):
        Rubrics.read(path).of(lost)


def test_two_rubrics_of_one_text_are_told_apart_by_id_alone(tmp_path):
    again = HEALTHBENCH[1] | {"prompt_id": "h2", "rubrics": [{"criterion": "other", "points": 1, "tags": []}]}
    rubrics = Rubrics.read(write_healthbench(tmp_path / "h.jsonl", [*HEALTHBENCH, again]))
    asked = make_prompt("胃痛", "多久了？", "三天", id="h2")
    assert rubrics.of({"h2": asked})["h2"] == (Criterion("other", 1.0),)
    with pytest.raises(InputError, match="no rubric for 1 of 1"):
        rubrics.of({"h3": asked})


def test_healthbenchs_rows_are_prompts_too(tmp_path):
    path = write_healthbench(tmp_path / "h.jsonl")
    prompts = {one.id: one for one in read_prompts([path])}
    assert prompts["h1"].turns == make_prompt("胃痛", "多久了？", "三天").turns and prompts["h0"].source == "h"
    assert Rubrics.read(path).of(prompts).keys() == {"h0", "h1"}
    write_healthbench(tmp_path / "bad.jsonl", [HEALTHBENCH[0] | {"prompt": [{"role": "user", "content": ""}]}])
    with pytest.raises(InputError, match="bad.jsonl:1: turn 0 has text ''"):
        list(read_prompts([tmp_path / "bad.jsonl"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("criteria: 3", "r.yaml: expected one key, criteria: a list of {criterion, points}"),
        ("rules: []", "r.yaml: expected one key, criteria"),
        ("criteria: []", "r.yaml:1: expected a list of criteria"),
        ("criteria: [x]", "r.yaml:1: criterion 1 has no text"),
        ("criteria:\n- {criterion: a, points: 1}\n- {criterion: b}", "r.yaml:1: criterion 2 has points of None"),
        ("criteria: [{criterion: a, points: true}]", "criterion 1 has points of True; expected a number"),
        ("criteria: [{criterion: a, points: .nan}]", "criterion 1 has points of nan; expected a number"),
        ("criteria: [{criterion: a, points: 1, tags: x}]", "criterion 1 has tags of 'x'; expected a list"),
        ("criteria: [{criterion: a, points: -1}]", "no criterion has points above 0"),
        ("criteria: [{criterion: a, points: 1, points: 2}]", "r.yaml:1: key 'points' is given twice"),
    ],
)  # fmt: skip
def test_a_rubric_that_is_none_is_one_line_with_its_place(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        Rubrics.read(str(tmp_path / "r.yaml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rubrics": []}, "h.jsonl:2: expected a list of criteria"),
        ({"rubrics": [{"criterion": " ", "points": 1}]}, "h.jsonl:2: criterion 1 has no text"),
        ({"prompt_id": None}, "h.jsonl:2: prompt_id is None; expected a string that no other row has"),
        ({"prompt_id": "h0"}, "h.jsonl:2: prompt_id is 'h0'; expected a string that no other row has"),
        ({"prompt": "胃痛"}, "h.jsonl:2: prompt: expected a list of messages"),
        ({"prompt": [{"role": "user"}]}, "h.jsonl:2: prompt: expected a list of messages"),
    ],
)
def test_a_row_of_healthbench_that_is_none_is_one_line_with_its_place(tmp_path, change, message):
    path = write_healthbench(tmp_path / "h.jsonl", [HEALTHBENCH[0], HEALTHBENCH[1] | change])
    with pytest.raises(InputError, match=message):
        Rubrics.read(path)
    with pytest.raises(InputError, match="nowhere.jsonl: no such file"):
        Rubrics.read(str(tmp_path / "nowhere.jsonl"))


def test_an_array_has_objects_in_it(tmp_path):
    (tmp_path / "h.json").write_text(" [3]")
    with pytest.raises(InputError, match="h.json:1: expected a JSON object, found int"):
        Rubrics.read(str(tmp_path / "h.json"))
