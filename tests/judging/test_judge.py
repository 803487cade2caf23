"""Judges behind a server on loopback: points by verdict, nothing asked twice, what is no verdict is counted."""

import json
import random
import re
from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chat_server import ChatServer
from support.judging import (
    CRITERIA,
    HEALTHBENCH,
    PROMPTS,
    candidates_of,
    honest,
    is_met,
    parts_of,
    score_of,
    verdict,
    write_healthbench,
    write_rubric,
)

from megatron_chimed.api.client import ChatError
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.reports.agreement import weighted_kappa
from megatron_chimed.evaluation.reports.human import LEVELS
from megatron_chimed.judging import judge
from megatron_chimed.judging.judge import cohens_kappa, score_by_judges, verdict_of
from megatron_chimed.judging.options import JudgeOptions
from megatron_chimed.rejection.prompts import read_prompts

KEY = "sk-test-of-judges-1234567890"
ANSWERS = {
    "p0": ["去神经内科", "多喝水", "去神经内科，多喝水", "每天三片"],
    "p1": ["去神经内科，多喝水，每天三片", "好"],
    "p2": ["不知道", ""],
}
CANDIDATES = candidates_of(ANSWERS)
NUM_VERDICTS = len(CANDIDATES) * len(CRITERIA)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A key, no proxy between us and loopback, and no waiting."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings = partial(judge.CallSettings, backoff=0.01, max_retries=2)
    monkeypatch.setattr(judge, "CallSettings", settings)


class Until:
    """An honest judge for `num_answers` requests; then the server refuses the key."""

    def __init__(self, num_answers: int):
        self.left = iter(range(num_answers))

    def __call__(self, body, attempt):
        return 401 if next(self.left, None) is None else honest(body, attempt)


def options(tmp_path, server, **more) -> JudgeOptions:
    given = {"rubric": write_rubric(tmp_path / "rubric.yaml"), "model": "m1", "base_url": server.url}
    return JudgeOptions(**given | more)


def judged(tmp_path, server, candidates=CANDIDATES, **more):
    return score_by_judges(options(tmp_path, server, **more), candidates, PROMPTS, tmp_path / "log.jsonl")


def test_the_score_of_an_answer_is_that_of_its_verdicts_points_below_0_included(tmp_path):
    with ChatServer(honest) as server:
        scores, figures = judged(tmp_path, server)
    assert scores == {one.key: pytest.approx(score_of(one.response)) for one in CANDIDATES}
    assert min(scores.values()) == -0.5 and max(scores.values()) == 1.0
    assert len(server.requests) == NUM_VERDICTS
    met = sum(is_met(one.response, text) for one in CANDIDATES for text, _, _ in CRITERIA)
    assert figures["judges"]["m1"]["verdicts"] == {"met": met, "not met": NUM_VERDICTS - met}
    mean = sum(scores.values()) / len(scores)
    assert figures["clipped mean"] == pytest.approx(mean) and "agreement" not in figures
    style = [is_met(one.response, CRITERIA[1][0]) for one in CANDIDATES]
    assert figures["clipped mean by tag"]["style"] == pytest.approx(sum(style) / len(style))


def test_a_judge_is_asked_for_one_criterion_of_one_answer_with_its_conversation(tmp_path):
    with ChatServer(honest) as server:
        judged(tmp_path, server, temperature=None, max_tokens=77, response_format="json_schema")
        sent = Counter(map(parts_of, server.requests))
        questions = {name: one.turns[-1].text for name, one in PROMPTS.items()}
        assert sent == Counter(
            (questions[one.prompt], one.response, text) for one in CANDIDATES for text, _, _ in CRITERIA
        )
        body = server.requests[0]
        assert (body["model"], body["max_tokens"], "temperature" in body) == ("m1", 77, False)
        assert body["response_format"]["json_schema"]["schema"]["properties"]["criteria_met"] == {"type": "boolean"}
        judged(tmp_path, server)
        assert server.requests[-1]["temperature"] == 0.0 and "response_format" not in server.requests[-1]


def test_a_conversation_of_healthbench_is_shown_whole_and_each_prompt_has_its_own_criteria(tmp_path):
    rubric = write_healthbench(tmp_path / "h.jsonl")
    prompts = {one.id: one for one in read_prompts([rubric])}
    candidates = candidates_of({"h0": ["休息", "休息，吃一片"], "h1": ["休息", "哪里痛？"]})
    with ChatServer(honest) as server:
        asked = options(tmp_path, server, rubric=rubric)
        scores, figures = score_by_judges(asked, candidates, prompts, tmp_path / "log.jsonl")
    assert scores == {(1, "h0", 0): 1.0, (1, "h0", 1): -3 / 7, (1, "h1", 0): 0.25, (1, "h1", 1): 0.75}
    assert figures["clipped mean"] == pytest.approx((1 - 3 / 7 + 0.25 + 0.75) / 4)
    by_tag = {"axis:accuracy": (1 + 1 + 1 + 0) / 4, "axis:completeness": 0.5, "level:example": 1.0}
    assert figures["clipped mean by tag"] == pytest.approx(by_tag)
    shown = [body["messages"][0]["content"] for body in server.requests]
    assert sum("user: 胃痛\n\nassistant: 多久了？\n\nuser: 三天\n\nassistant: 休息" in one for one in shown) == 2
    others = HEALTHBENCH[1]["rubrics"][1]["criterion"]
    assert len(shown) == 8 and not any(others in one for one in shown if "头痛" in one)


def test_stopped_anywhere_and_started_again_it_asks_for_nothing_twice(tmp_path, capfd):
    draw, whole = random.Random(3), tmp_path / "whole"
    whole.mkdir()
    with ChatServer(honest) as server:
        expected = judged(whole, server)
    for end in sorted(draw.sample(range(1, NUM_VERDICTS), 4)):
        folder = tmp_path / f"{end}"
        folder.mkdir()
        with ChatServer(Until(end)) as server:
            with pytest.raises(ChatError, match="HTTP 401 to request m1 1 p.*; set OPENAI_API_KEY") as error:
                judged(folder, server)
            assert KEY not in str(error.value) and "\n" not in str(error.value)
            with open(folder / "log.jsonl", "ab") as file:
                file.write(b'{"key": ["m1", 1, "p0"')  # what a kill leaves of a line
            bought = server.num_answered.total()
            server.behave = honest
            capfd.readouterr()
            assert judged(folder, server) == expected
            assert bought == end and set(server.num_answered.values()) == {1}
            assert len(server.num_answered) == NUM_VERDICTS
            told = capfd.readouterr().err
            assert re.search(rf"^m1 +{NUM_VERDICTS} +{end} ", told, re.M), told
            assert judged(folder, server) == expected and "estimate" not in capfd.readouterr().err
    assert KEY not in (folder / "log.jsonl").read_text()


def test_other_points_or_another_order_ask_for_nothing_and_another_answer_for_its_own_verdicts(tmp_path):
    with ChatServer(honest) as server:
        judged(tmp_path, server)
        write_rubric(tmp_path / "other.yaml", [(text, 2 * points + 1, []) for text, points, _ in CRITERIA[::-1]])
        again, _ = judged(tmp_path, server, rubric=str(tmp_path / "other.yaml"))
        assert len(server.requests) == NUM_VERDICTS and again[1, "p0", 3] == -3 / 10
        changed = candidates_of(ANSWERS | {"p2": ["不知道", "去外科"]})
        assert judged(tmp_path, server, changed)[0][1, "p2", 1] == 0.75
        assert len(server.requests) == NUM_VERDICTS + len(CRITERIA)
        judged(tmp_path, server, candidates_of(ANSWERS, round=2))
        assert len(server.requests) == 2 * NUM_VERDICTS + len(CRITERIA)


def test_the_cost_is_told_before_anything_is_sent(tmp_path, capfd):
    def stop(body, attempt):
        assert "estimate" in capfd.readouterr().err
        return 400

    with ChatServer(stop) as server, pytest.raises(ChatError, match="HTTP 400"):
        judged(tmp_path, server, concurrency=1, price_in=[10], price_out=[1000], answer_tokens=100)
    with ChatServer(honest) as server:
        judged(tmp_path, server, price_in=[0], price_out=[1000], answer_tokens=100)
    told = capfd.readouterr().err
    assert re.search(rf"^total .* {NUM_VERDICTS * 100:,} +{NUM_VERDICTS * 100 * 1000 / 1e6:.2f}$", told, re.M), told


def test_above_the_largest_price_nothing_is_sent(tmp_path, capfd):
    told = re.escape(
        "judge: the verdicts that are left cost about 2.40, above max_price 2.39; raise it to have them asked"
    )
    prices = {"price_in": [0], "price_out": [1000], "answer_tokens": 100}  # 24 verdicts of 100 tokens
    with ChatServer(honest) as server:
        with pytest.raises(InputError, match=told):
            judged(tmp_path, server, max_price=2.39, **prices)
        assert not server.requests and "estimate" in capfd.readouterr().err
        judged(tmp_path, server, max_price=2.4, **prices)
        judged(tmp_path, server, max_price=0, **prices)  # of what is kept
        assert len(server.requests) == NUM_VERDICTS


BAD = {
    "refused": {"text": "", "refusal": "no"},
    "content filter": {"text": "半", "finish_reason": "content_filter"},
    "empty": {"text": ""},
    "unreadable": {"text": "Yes, it does."},
}


@pytest.mark.parametrize("reason", BAD)
def test_what_is_no_verdict_is_counted_by_its_reason_and_its_answer_has_no_score(tmp_path, reason):
    def behave(body, attempt):
        _, answer, criterion = parts_of(body)
        return BAD[reason] if (answer, criterion) == ("多喝水", CRITERIA[0][0]) else honest(body, attempt)

    with ChatServer(behave) as server:
        scores, figures = judged(tmp_path, server)
        assert judged(tmp_path, server) == (scores, figures) and len(server.requests) == NUM_VERDICTS
    assert scores.pop((1, "p0", 1)) is None
    assert None not in scores.values() and 0 in scores.values(), "the control: a score of 0 is another thing"
    assert figures["judges"]["m1"]["verdicts"][reason] == 1
    assert sum(figures["judges"]["m1"]["verdicts"].values()) == NUM_VERDICTS
    assert figures["clipped mean"] == pytest.approx(sum(scores.values()) / len(scores))


def test_a_judge_that_says_nothing_readable_is_one_line_that_counts_it(tmp_path):
    with (
        ChatServer(lambda body, attempt: {"text": "Yes."}) as server,
        pytest.raises(InputError, match=r"none of 8 answers has all of its verdicts \(m1: 24 unreadable\)") as error,
    ):
        judged(tmp_path, server)
    assert "\n" not in str(error.value) and "log.jsonl" in str(error.value)


def test_verdicts_that_a_server_could_not_give_are_asked_for_again_by_the_next_run(tmp_path):
    def failing(body, attempt):
        return 503 if parts_of(body)[1] == "好" else honest(body, attempt)

    with ChatServer(failing) as server:
        with pytest.raises(InputError, match=r"judge: 3 of 24 verdicts could not be had \(HTTP 503\); run the command"):
            judged(tmp_path, server)
        server.behave = honest
        judged(tmp_path, server)
        assert set(server.num_answered.values()) == {1} and len(server.num_answered) == NUM_VERDICTS


def test_two_judges_score_in_the_mean_and_their_kappa_is_over_what_both_have_said(tmp_path):
    def behave(body, attempt):
        question, answer, criterion = parts_of(body)
        if body["model"] == "m1":
            return {"text": "?"} if answer == "好" else honest(body, attempt)
        return verdict(is_met(answer, criterion) or criterion == CRITERIA[1][0])  # m2 finds every answer in style

    with ChatServer(behave) as one, ChatServer(behave) as other:
        scores, figures = judged(tmp_path, one, model=["m1", "m2"], base_url=[one.url, other.url])
    assert {body["model"] for body in one.requests} == {"m1"} and {body["model"] for body in other.requests} == {"m2"}
    for candidate in CANDIDATES:
        text = candidate.response
        second = score_of(text) + (0 if "多喝水" in text else 1 / 4)
        expected = None if text == "好" else pytest.approx((score_of(text) + second) / 2)
        assert scores[candidate.key] == expected
    pairs = [
        (is_met(one.response, text), is_met(one.response, text) or text == CRITERIA[1][0])
        for one in CANDIDATES if one.response != "好" for text, _, _ in CRITERIA
    ]  # fmt: skip
    agreement = figures["agreement"]
    assert agreement["verdicts"] == len(pairs) == NUM_VERDICTS - 3
    assert agreement["same"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert agreement["kappa"] == pytest.approx(slow_kappa(pairs)) and 0 < agreement["kappa"] < 1
    assert figures["judges"]["m1"]["verdicts"]["unreadable"] == 3


def slow_kappa(pairs) -> float | None:
    """Cohen's kappa by its definition, on the table of counts."""
    table = {(a, b): sum(pair == (a, b) for pair in pairs) for a in (False, True) for b in (False, True)}
    total = sum(table.values())
    if not total:
        return None
    observed = (table[True, True] + table[False, False]) / total
    rows = {value: table[value, True] + table[value, False] for value in (False, True)}
    columns = {value: table[True, value] + table[False, value] for value in (False, True)}
    expected = sum(rows[value] / total * columns[value] / total for value in (False, True))
    return None if expected == 1 else (observed - expected) / (1 - expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_kappa_equals_its_slow_twin_and_the_weighted_kappa_of_two_levels(pairs):
    found, expected = cohens_kappa(pairs), slow_kappa(pairs)
    assert found == (None if expected is None else pytest.approx(expected))
    if found is not None:
        levels = [[LEVELS[int(pair[place])] for pair in pairs] for place in (0, 1)]
        assert found == pytest.approx(weighted_kappa(*levels))


def test_kappa_is_1_for_judges_that_agree_and_0_for_chance():
    assert cohens_kappa([(True, True), (False, False)]) == 1
    assert cohens_kappa([(True, True), (True, False), (False, True), (False, False)]) == 0
    assert cohens_kappa([(True, True)] * 3) is None and cohens_kappa([]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"explanation": "x", "criteria_met": true}', True),
        ('```json\n{"explanation": "a {b} \\"c\\"", "criteria_met": false}\n```', False),
        ('Well: {"criteria_met": true} I think.', True),
        ('<think>{"criteria_met": true}? No.</think>\n{"criteria_met": false}', False),
        ('{"criteria_met": true} {"criteria_met": true}', True),
        ('{"criteria_met": true} {"criteria_met": false}', None),
        ('{"explanation": "it says {\\"criteria_met\\": true}", "criteria_met": false}', False),
        ('{"criteria_met": "true"}', None),
        ('{"criteria_met": 1}', None),
        ('{"explanation": "cut off in the mid', None),
        ("[true]", None),
        ("{" * 5000, None),
        ("", None),
    ],
)
def test_a_verdict_is_read_where_it_is_clear_and_nowhere_else(text, expected):
    assert verdict_of(text) is expected


def test_what_is_kept_says_which_judge_answer_and_criterion(tmp_path):
    with ChatServer(honest) as server:
        judged(tmp_path, server)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {tuple(row["key"][:4]) for row in rows} == {("m1", *one.key) for one in CANDIDATES}
    assert len({tuple(row["key"]) for row in rows}) == NUM_VERDICTS == len(rows)
    assert all("criteria_met" in row["completion"]["text"] for row in rows)
