"""HealthBench: conversations with criteria of their own, answers judged behind a server on loopback that misbehaves."""

import itertools
from functools import partial

import pytest
from sklearn.metrics import cohen_kappa_score
from support.chat_server import ChatServer
from support.exam_files import write_lines
from support.exam_models import Scripted, scripted
from support.judging import HEALTHBENCH, honest, is_met, parts_of, verdict

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.healthbench import read_healthbench
from megatron_chimed.evaluation.reports.report import write_report
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.jsonl import read_json_lines
from megatron_chimed.judging import judge
from megatron_chimed.judging.options import JudgeOptions, read_judge
from megatron_chimed.text.template import Template

pytestmark = pytest.mark.cpu  # lm-eval loads torch


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A key, no proxy between us and loopback, and no waiting."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(judge, "CallSettings", partial(judge.CallSettings, backoff=0.01, max_retries=2))


def row(number: int) -> dict:
    """HealthBench's form, two themes in turn; each row has two criteria."""
    one = HEALTHBENCH[number % 2]
    *before, last = one["prompt"]
    asked = [*before, last | {"content": f"{last['content']}，第{number}位"}]
    return one | {"prompt_id": f"h{number}", "prompt": asked}


@pytest.fixture
def file(tmp_path):
    return write_lines(tmp_path / "healthbench.jsonl", [row(number) for number in range(6)])


def evaluate(answer, file, output, judge=None, **settings) -> dict:
    """Evaluate a model that gives answer(item); its one task."""
    backend = Scripted(lambda item, prompt: answer(item))
    settings, flags = Settings(runs=1, **settings), [f"healthbench={file}"]
    more = {"judge": judge, "progress": False}
    results = evaluate_model(scripted(backend), flags, output, settings, Template(), **more)
    return results["tasks"]["healthbench"]


def by(server, *models: str, **more) -> JudgeOptions:
    models = models or ("m1",)
    return JudgeOptions(model=list(models), base_url=server.url, **more)


def test_a_row_becomes_turns_and_criteria_and_a_damaged_one_a_fault_with_its_place(tmp_path):
    good = row(1)
    changes = [
        ({}, "prompt_id is 'h1'"),
        ({"prompt_id": "a", "rubrics": []}, "expected a list of criteria"),
        ({"prompt_id": "b", "rubrics": [{"criterion": "x", "points": "7"}]}, "criterion 1 has points of '7'"),
        ({"prompt_id": "c", "prompt": good["prompt"][:2]}, "prompt: expected messages of user and assistant in turn"),
        (
            {"prompt_id": "d", "prompt": [{"role": "system", "content": "x"}]},
            "prompt: message 1 is no text of the user",
        ),
    ]
    path = write_lines(tmp_path / "h.jsonl", [good, *(good | change for change, _ in changes), row(2)])
    loaded = read_healthbench(str(path))["test"]
    assert [item["prompt_id"] for item in loaded.items] == ["h1", "h2"]
    assert loaded.items[0]["history"] == ["胃痛", "多久了？", "三天，第1位"]
    assert loaded.items[0]["group"] == "context_seeking" and loaded.items[0]["rubric"][1]["points"] == 6.0
    for number, (fault, (_, reason)) in enumerate(zip(loaded.faults, changes, strict=True), start=2):
        assert fault.startswith(f"{path}:{number}: ") and reason in fault, fault


def test_the_best_answers_are_at_100_and_silence_at_0_without_a_verdict(file, tmp_path, capfd):
    with ChatServer(honest) as server:
        best = evaluate(lambda item: "休息。哪里痛？", file, tmp_path / "best", by(server))
        assert best["metrics"]["score"]["mean"] == 100 and best["problems"] == {"empty": 0, "unjudged": 0}
        assert set(best["groups"]) == {"hedging", "context_seeking"} and best["groups"]["hedging"]["n"] == 3
        assert "healthbench: 12 verdicts on 6 answers by m1" in capfd.readouterr().err
        asked = len(server.requests)
        silent = evaluate(lambda item: " ", file, tmp_path / "silent", by(server))
        assert silent["metrics"]["score"]["mean"] == 0 and silent["problems"]["empty"] == 6
        assert len(server.requests) == asked == 12


def test_points_below_0_pull_the_mean_down_and_only_the_mean_is_clipped(file, tmp_path):
    with ChatServer(honest) as server:
        task = evaluate(lambda item: "每天三片，休息", file, tmp_path / "a", by(server))
        rows = [row for _, row in read_json_lines(tmp_path / "a/samples/healthbench.0.jsonl")]
        assert [one["scores"]["score"] for one in rows] == [[-3 / 7, 1.0], [0.25, 1.0]] * 3
        assert task["metrics"]["score"]["mean"] == 0.0 == task["groups"]["hedging"]["metrics"]["score"]["mean"]
        figure = task["groups"]["context_seeking"]["metrics"]["score"]
        assert figure["mean"] == 25 and figure["low"] == figure["high"] == 25  # all three alike
        by_tag = task["judging"][0]["clipped mean by tag"]
        assert by_tag["axis:accuracy"] == 1.0 and by_tag["axis:completeness"] == 0.0


def test_a_server_that_misbehaves_costs_nothing_twice_and_a_killed_run_goes_on(file, tmp_path):
    faults = itertools.cycle([500, "drop", "half", None, (429, {"retry-after": "0"}), None, b"no json", None])
    answers = iter(range(5))

    def dies(body, attempt):
        fault = next(faults) if attempt == 0 else None
        if fault is not None:
            return fault
        return 401 if next(answers, None) is None else honest(body, attempt)

    def misbehaves(body, attempt):
        return (next(faults) if attempt == 0 else None) or honest(body, attempt)

    def answer(item):
        return f"休息，{len(item['history'])}"

    with ChatServer(dies) as server:
        with pytest.raises(InputError, match="HTTP 401"):
            evaluate(answer, file, tmp_path / "out", by(server, concurrency=1))
        server.behave = misbehaves
        whole = evaluate(answer, file, tmp_path / "out", by(server, concurrency=1))
        assert set(server.num_answered.values()) == {1} and len(server.num_answered) == 12
        asked = len(server.requests)
        assert evaluate(answer, file, tmp_path / "out", by(server, concurrency=1)) == whole
        assert len(server.requests) == asked
    assert whole["problems"]["unjudged"] == 0 and whole["judging"][0]["judges"]["m1"]["verdicts"] == {
        "met": 6,
        "not met": 6,
    }


def test_what_a_judge_does_not_say_is_counted_and_never_taken_for_not_met(file, tmp_path):
    def mumbles(body, attempt):
        question, _, criterion = parts_of(body)
        return {"text": "Well."} if "第3位" in question and "asks" in criterion else honest(body, attempt)

    with ChatServer(mumbles) as server:
        task = evaluate(lambda item: "休息？", file, tmp_path / "out", by(server))
    assert task["problems"]["unjudged"] == 1 and task["metrics"]["score"]["mean"] == 100
    write_report([tmp_path / "out"], tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "1 of 6 answers without a score, as a verdict is missing" in text and "1 unreadable" in text


def test_the_agreement_of_two_judges_is_that_of_sklearn(file, tmp_path):
    def differ(body, attempt):
        question, answer, criterion = parts_of(body)
        other = body["model"] == "m2" and ("第1位" in question or "第4位" in question)
        return verdict(is_met(answer, criterion) != other)

    with ChatServer(differ) as server:
        task = evaluate(lambda item: "休息", file, tmp_path / "out", by(server, "m1", "m2"))
    one = [is_met("休息", part["criterion"]) for number in range(6) for part in row(number)["rubrics"]]
    other = [met != (place // 2 in (1, 4)) for place, met in enumerate(one)]
    agreement = task["judging"][0]["agreement"]
    assert agreement["kappa"] == pytest.approx(cohen_kappa_score(one, other)) and agreement["verdicts"] == 12
    write_report([tmp_path / "out"], tmp_path)
    assert f"the judges' kappa {agreement['kappa']:.2f} over 12" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_cost_is_told_first_and_above_the_price_nothing_is_sent(file, tmp_path, capfd):
    with ChatServer(honest) as server:
        dear = by(server, price_in=[10.0], price_out=[30.0], max_price=0)
        with pytest.raises(InputError, match="above max_price 0"):
            evaluate(lambda item: "休息", file, tmp_path / "out", dear)
        assert not server.requests and "tokens in" in capfd.readouterr().err


def test_without_a_judge_nothing_is_loaded_and_a_wrong_one_is_one_clear_line(file, tmp_path):
    def make():
        raise AssertionError("loaded")

    with pytest.raises(InputError, match=r"healthbench is scored by a judge: give --judge FILE\.yaml"):
        evaluate(make, file, tmp_path / "out")
    path = tmp_path / "judge.yaml"
    for text, reason in (
        ("model: m\n", "base_url: expected a URL with /v1"),
        ("model: m\nbase_url: http://h/v1\nrubric: r.yaml\n", "rubric: the benchmark brings its own"),
        ("modell: m\n", "modell"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=reason):
            read_judge(path)
    path.write_text("model: [m, n]\nbase_url: http://127.0.0.1:1/v1\n", encoding="utf-8")
    assert read_judge(path).judges == [("m", "http://127.0.0.1:1/v1"), ("n", "http://127.0.0.1:1/v1")]
