"""A model behind a server in an evaluation: its turns, its refusals, and answers that were paid for once."""

import subprocess
import sys

import pytest
from support.chat_server import ChatServer
from support.exam_files import dialogue, write_ceval
from support.paths import ROOT

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.backends.models import EngineOptions, open_model
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.text.template import Template

pytestmark = pytest.mark.cpu  # lm-eval loads torch


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No key of this machine, and no proxy between us and loopback."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def evaluate(server, flags, output, **settings):
    model = open_model("openai:some-model", EngineOptions(base_url=server.url), Template())
    return evaluate_model(model, flags, output, Settings(runs=1, **settings), Template(), progress=False)


def test_a_server_gets_turns_and_options_and_its_refusals_are_counted(tmp_path):
    path = tmp_path / "mc.dialog"
    path.write_text(dialogue(1) + dialogue(2), encoding="utf-8")

    def behave(body, attempt):
        question = body["messages"][-1]["content"]
        if "说法" in question:
            return {"refusal": "no", "text": None} if "邻居" in question else {"text": "我同意。"}
        return {"text": "B"} if "答案：" in question else {"text": "建议休息"}

    with ChatServer(behave) as server:
        flags = [f"mc={path}", f"ceval={write_ceval(tmp_path / 'ceval')}", "scale=example"]
        results = evaluate(server, flags, tmp_path / "out", max_new_tokens=20)
        asked = server.requests
    turns = [[message["role"] for message in body["messages"]] for body in asked if "三天" in str(body)]
    assert turns == [["user", "assistant", "user"]] * 2
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in asked} == {("some-model", 20, 0.0)}
    assert list(results["tasks"]) == ["ceval_letter", "mc", "scale"]
    assert results["tasks"]["ceval_letter"]["metrics"]["acc"]["mean"] == 25
    assert results["tasks"]["scale"]["problems"] == {"refused": 1}
    assert results["tasks"]["scale"]["metrics"]["points"]["answered"] == 7


def test_what_a_failing_server_has_answered_is_asked_for_once(tmp_path):
    flags = [f"ceval={write_ceval(tmp_path / 'ceval')}"]
    failing = [True]

    def behave(body, attempt):
        return (
            (401, {}, {"message": "bad key"})
            if failing[0] and "第5题" in body["messages"][-1]["content"]
            else {"text": "A"}
        )

    with ChatServer(behave) as server:
        with pytest.raises(InputError, match=r"of 16 answers are missing: .*HTTP 401 .*bad key"):
            evaluate(server, flags, tmp_path / "out")
        before = sum(server.num_answered.values())
        failing[0] = False
        results = evaluate(server, flags, tmp_path / "out")
        assert sum(server.num_answered.values()) == 16 and 0 < before < 16
    assert results["tasks"]["ceval_letter"]["metrics"]["acc"]["mean"] == 25


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("gpt", ["mc=x"], "expected hf:DIR, vllm:DIR, megatron:DIR or openai:MODEL"),
        ("megatron:.", ["mc=x"], "--tokenizer MODEL_OR_FOLDER"),
        ("openai:m", ["exam=x"], "--tasks exam=x: expected NAME=PATH"),
        ("openai:m", ["mc=nowhere.dialog"], "nowhere.dialog: no such file"),
    ],
)
def test_bad_input_is_told_before_a_model_is_loaded(tmp_path, name, flags, reason):
    with pytest.raises(InputError, match=reason):
        model = open_model(name, EngineOptions(), Template())
        evaluate_model(model, flags, tmp_path / "out", Settings(), Template(), progress=False)
    assert not (tmp_path / "out").exists()


def test_the_command_says_it_in_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "--model", "hf:nowhere", "--tasks", "mc=x"]
    done = subprocess.run([*command, "--output", "out"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    expected = "evaluate.py: error: --model hf:nowhere: nowhere is no folder\n"
    assert (done.returncode, done.stderr, done.stdout) == (1, expected, "")
