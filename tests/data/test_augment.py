"""Pairs augmented over HTTP by a server that misbehaves: levels in order, nothing bought twice, no key anywhere."""

import json
import re
import signal
import subprocess
import time

import pytest
from support.chat_server import ChatServer, Gate, answer_of
from support.corpora import call, call_here, command
from support.reward_sources import make_groups, prepare, read_groups, row_of, write_groups, write_rows

from megatron_chimed.api.client import CallSettings, ChatError
from megatron_chimed.api.costs import Prices, estimate_tokens
from megatron_chimed.data.augment import INSTRUCTION, Augmentation, AugmentOptions, messages_of
from megatron_chimed.errors import InputError
from megatron_chimed.records import RankedGroup, Turn

pytestmark = pytest.mark.slow
KEY = "sk-silence_import_warnings-1234567890abcdef"
QUICK = CallSettings(timeout=60, backoff=0.01, max_retries=3)
HASTY = CallSettings(timeout=1, backoff=0.01)  # for a server that hangs
MODELS = ("gpt-4", "gpt-3.5-turbo")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A key, and no proxy between us and loopback."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def pairs(tmp_path):
    """Thirty pairs, as tools/prepare_rewards.py writes them."""
    path = tmp_path / "pairs.jsonl"
    prepare([f"cmd={write_groups(tmp_path / 'raw' / 'a.jsonl', 'cmd', make_groups(30))}"], path)
    return path


def augment(pairs, output, server, calls=QUICK, share=0.01, models=MODELS, **options):
    work = Augmentation(pairs, output, AugmentOptions(models, server.url, **options), calls)
    return work.run(max_failed_share=share, progress=False)


def number_of(body):
    return int(re.search(r"第(\d+)问", body["messages"][-1]["content"])[1])


def said(model, pair):
    return answer_of({"model": model, "messages": [{"content": f"{INSTRUCTION}\n{pair.turns[0].text}"}]})


def test_the_models_stand_between_the_two_answers_in_their_order(tmp_path, pairs):
    with ChatServer() as server:
        content = augment(pairs, tmp_path / "out.jsonl", server, temperature=0.5, max_tokens=9)
    for pair, group in zip(read_groups(pairs), read_groups(tmp_path / "out.jsonl"), strict=True):
        best, worst = pair.responses
        assert group.responses == (best, said("gpt-4", pair), said("gpt-3.5-turbo", pair), worst)
        assert group.preference_ranks == (0, 1, 2, 3)
        assert (group.id, group.source, group.turns) == (pair.id, pair.source, pair.turns)
    assert len(server.requests) == 60 and content["rows"] == 30
    sent = {json.dumps(body["messages"], ensure_ascii=False) for body in server.requests}
    wanted = [[{"role": "user", "content": f"{INSTRUCTION}\n{pair.turns[0].text}"}] for pair in read_groups(pairs)]
    assert sent == {json.dumps(messages, ensure_ascii=False) for messages in wanted}
    assert all(body["temperature"] == 0.5 and body["max_tokens"] == 9 for body in server.requests)


def test_a_conversation_is_sent_whole_and_the_instruction_once(tmp_path):
    turns = [{"role": role, "text": text} for role, text in (("user", "一"), ("assistant", "二"), ("user", "三"))]
    row = {"id": "a", "source": "s", "turns": turns, "responses": ["坏", "好"], "ranks": [5, 2]}
    path = write_rows(tmp_path / "a.jsonl", [row])
    with ChatServer() as server:
        augment(path, tmp_path / "out.jsonl", server, models=("m",), instruction="说：")
        augment(path, tmp_path / "none.jsonl", server, models=("m",), instruction="")
    assert [message["content"] for message in server.requests[0]["messages"]] == ["说：\n一", "二", "三"]
    assert [message["role"] for message in server.requests[0]["messages"]] == ["user", "assistant", "user"]
    assert [message["content"] for message in server.requests[1]["messages"]] == ["一", "二", "三"]
    (group,) = read_groups(tmp_path / "out.jsonl")
    assert (group.responses, group.preference_ranks) == (("好", "m 答：三", "坏"), (0, 1, 2))  # the better answer first


def test_the_instruction_is_a_line_of_the_first_question_behind_a_system_turn():
    turns = (Turn("system", "s"), Turn("user", "一"), Turn("assistant", "二"), Turn("user", "三"))
    sent = messages_of(RankedGroup("a", "s", turns, ("好", "坏"), (0, 1)), "说：")
    assert [(one["role"], one["content"]) for one in sent] == [
        ("system", "s"), ("user", "说：\n一"), ("assistant", "二"), ("user", "三"),
    ]  # fmt: skip


def misbehave(body, attempt):
    """Every fault of a moment once, one question each; refusals and empty answers for good."""
    faults = [429, 500, 503, ("hang", 30), "drop", "half", b"{", (429, {"Retry-After": "0.2"}), 408, b""]
    answers = {
        20: {"text": ""},
        21: {"text": None, "refusal": "不"},
        22: {"text": "半", "finish_reason": "content_filter"},
    }
    number = number_of(body)
    if number in answers and body["model"] == "gpt-4":
        return answers[number]
    return faults[number] if number < len(faults) and attempt == 0 else None


def test_a_server_that_misbehaves_in_every_way_costs_only_what_it_refuses(tmp_path, pairs):
    with ChatServer(misbehave) as server:
        content = augment(pairs, tmp_path / "out.jsonl", server, HASTY)
    groups = read_groups(tmp_path / "out.jsonl")
    absent = [number for number, group in enumerate(groups) if group.preference_ranks == (0, -1, 2, 3)]
    assert absent == [20, 21, 22] and sum(group.preference_ranks == (0, 1, 2, 3) for group in groups) == 27
    assert all(groups[number].responses[1] is None for number in absent)
    four, turbo = (content["models"][model] for model in MODELS)
    assert four["outcomes"] == {"answered": 27, "content filter": 1, "empty": 1, "refused": 1} and not four["failed"]
    assert turbo["outcomes"] == {"answered": 30} and turbo["prompt_tokens"] == 300
    assert len(server.requests) >= 60 + 2 * 10


def test_what_failed_at_all_attempts_is_absent_and_asked_for_again_by_the_same_command(tmp_path, pairs):
    output = tmp_path / "out.jsonl"
    with ChatServer(lambda body, attempt: 500 if number_of(body) in (3, 4) else None) as server:
        with pytest.raises(InputError, match=r"4 of 60 requests failed at all attempts \(HTTP 500\), above"):
            augment(pairs, output, server)
        assert not output.exists()
        content = augment(pairs, output, server, share=0.1)
        assert read_groups(output)[3].preference_ranks == (0, -1, -1, 3)
        assert content["models"]["gpt-4"]["failed"] == {"HTTP 500": 2}
        server.behave = lambda body, attempt: None
        assert not augment(pairs, output, server, share=0.1)["models"]["gpt-4"]["failed"]
        assert all(group.preference_ranks == (0, 1, 2, 3) for group in read_groups(output))
        assert server.num_answered.total() == 60


@pytest.mark.parametrize("status", [400, 401])
def test_a_refusal_of_the_server_stops_with_one_line_and_what_was_bought_is_kept(tmp_path, pairs, status):
    output = tmp_path / "out.jsonl"
    refused = (status, {}, {"message": f"no: {KEY}"})
    with ChatServer(lambda body, attempt: refused if number_of(body) == 17 else None) as server:
        with pytest.raises(ChatError, match=f"HTTP {status} to request cmd:a.jsonl:18 gpt-4: no: ") as error:
            augment(pairs, output, server)
        assert "\n" not in str(error.value) and KEY not in str(error.value) and not output.exists()
        bought = server.num_answered.total()
        server.behave = lambda body, attempt: None
        augment(pairs, output, server)
        assert bought >= 17 and server.num_answered.total() == 60


def run_tool(*arguments):
    done = call_here("augment_rewards.py", "--models", ",".join(MODELS), "--backoff", "0.01", *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_killed_run_buys_nothing_twice_and_ends_in_the_same_bytes(tmp_path, pairs):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"

    def behave(body, attempt):
        kind = misbehave(body, attempt)
        return None if kind == ("hang", 30) else kind  # only a time-out would depend on the machine

    with ChatServer(behave) as server:
        augment(pairs, whole, server)
    gate = Gate(40, behave)
    with ChatServer(gate) as server:
        arguments = ["--models", ",".join(MODELS), "--input", pairs, "--output", output, "--base-url", server.url]
        arguments += ["--backoff", "0.01", "--concurrency", "4"]
        log = output.with_suffix(".answers.jsonl")
        process = subprocess.Popen(command("augment_rewards.py", *arguments), stderr=subprocess.PIPE, text=True)
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 25):
            time.sleep(0.005)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        kept = [json.loads(line)["key"] for line in log.read_text(encoding="utf-8").split("\n")[:-1]]
        assert 25 <= len(kept) < 60 and not output.exists()
        before = server.attempts.copy()
        gate.opened.set()
        done = call("augment_rewards.py", *arguments)
        assert done.returncode == 0, done.stderr
        asked = {
            (model, text) for (model, text, _), number in server.attempts.items() if number > before[model, text, None]
        }
    questions = {group.id: f"{INSTRUCTION}\n{group.turns[0].text}" for group in read_groups(pairs)}
    bought = {(model, questions[name]) for name, model in kept}
    assert len(bought) == len(kept) and not asked & bought
    assert re.search(rf"total +60 +{len(kept)} ", done.stdout)  # the estimate counts what is kept
    assert output.read_bytes() == whole.read_bytes()


def test_the_same_command_again_sends_nothing_and_another_setting_asks_anew(tmp_path, pairs, capsys):
    output = tmp_path / "out.jsonl"
    with ChatServer() as server:
        first = augment(pairs, output, server)
        assert augment(pairs, output, server) == first and "up to date" in capsys.readouterr().err
        output.unlink()
        assert augment(pairs, output, server) == first and len(server.requests) == 60
        augment(pairs, output, server, models=("gpt-4", "other"))
        assert len(server.requests) == 90
        augment(pairs, output, server, instruction="")
        assert len(server.requests) == 150


def test_a_dry_run_says_what_it_would_cost_and_sends_and_writes_nothing(tmp_path, pairs):
    output = tmp_path / "new" / "out.jsonl"
    with ChatServer() as server:
        arguments = ["--input", pairs, "--output", output, "--base-url", server.url, "--answer-tokens", 500]
        arguments += ["--price-in", "30,1", "--price-out", "60,2"]
        done = run_tool(*arguments, "--dry-run")
        assert done.returncode == 0 and not server.requests and not output.parent.exists()
        tokens = sum(estimate_tokens(f"{INSTRUCTION}\n{pair.turns[0].text}") for pair in read_groups(pairs))
        prices = [(30 * tokens + 60 * 15000) / 1e6, (tokens + 2 * 15000) / 1e6]
        expected = [
            ["gpt-4", "30", "0", f"{tokens:,}", "15,000", f"{prices[0]:.2f}"],
            ["gpt-3.5-turbo", "30", "0", f"{tokens:,}", "15,000", f"{prices[1]:.2f}"],
            ["total", "60", "0", f"{2 * tokens:,}", "30,000", f"{sum(prices):.2f}"],
        ]
        assert [line.split() for line in done.stdout.splitlines()[1:]] == expected
        plain = run_tool(*arguments)
        assert plain.stdout.startswith(done.stdout) and "gpt-4: 30 answered; 300 tokens in" in plain.stdout
        again = run_tool(*arguments, "--dry-run")
        assert again.stdout.splitlines()[-1].split() == ["total", "60", "60", "0", "0", "0.00"]
        assert len(server.requests) == 60


def test_the_key_is_in_no_output_and_no_message(tmp_path, pairs):
    echo = (401, {}, {"message": f"Incorrect API key provided: {KEY}"})
    output = tmp_path / "out" / "a.jsonl"
    with ChatServer(lambda body, attempt: echo if number_of(body) == 25 else misbehave(body, attempt)) as server:
        arguments = ["--input", pairs, "--output", output, "--base-url", server.url, "--timeout", "1"]
        failed = run_tool(*arguments)
        assert failed.returncode == 1 and "OPENAI_API_KEY" in failed.stderr.splitlines()[-1]
        server.behave = misbehave
        done = run_tool(*arguments)
        assert done.returncode == 0, done.stderr
    assert all(
        headers["authorization"] == f"Bearer {KEY}" for headers in server.headers
    )  # it was used, so it could leak
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"a.jsonl", "a.answers.jsonl", "a.manifest.json"}
    secret = KEY.encode()
    assert not [file for file in files if secret in file.read_bytes() or secret[3:] in file.read_bytes()]
    assert not [text for text in (failed.stdout, failed.stderr, done.stdout, done.stderr) if KEY[3:] in text]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "invalid JSON"),
        ('{"question": "问", "response_chosen": "好", "response_rejected": "坏"}', "field 'turns'"),
        ({"responses": ["好", "中", "坏"], "ranks": [0, 1, 2]}, "ranks 0, 1, 2; expected two answers"),
        ({"responses": ["好", None], "ranks": [0, -1]}, "ranks 0, -1; expected two answers"),
        ({"responses": ["好", "坏"], "ranks": [1, 1]}, "ranks 1, 1; expected two answers, one better"),
        ({"id": "cmd:a.jsonl:2"}, "the id 'cmd:a.jsonl:2' comes twice"),
        ({"responses": ["好", "坏\ud800"]}, "half a character"),
    ],
)
def test_a_group_that_is_no_pair_is_refused_at_its_line_before_anything_is_sent(tmp_path, pairs, row, reason):
    if isinstance(row, dict):
        row = json.dumps(row_of("record", "问", ["好", "坏"]) | row)
    pairs.write_text(pairs.read_text(encoding="utf-8") + row + "\n", encoding="utf-8")
    with ChatServer() as server, pytest.raises(InputError, match=r"pairs\.jsonl:31: ") as error:
        augment(pairs, tmp_path / "out.jsonl", server)
    assert reason in str(error.value) and "\n" not in str(error.value) and not server.requests


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"models": ("gpt-4", "gpt-4")}, "--models gpt-4,gpt-4: expected different names"),
        ({"models": ("",)}, "expected different names"),
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"base_url": "https://me:secret@host/v1"}, "without user, password and query"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path, pairs, setting, message):
    with pytest.raises(InputError, match=message) as error:
        Augmentation(pairs, tmp_path / "o.jsonl", AugmentOptions(**{"models": MODELS, **setting}))
    assert "secret" not in str(error.value)


def test_a_wrong_flag_is_one_line(tmp_path, pairs):
    for flag, value, message in (
        ("--price-in", "30", "--price-in and --price-out go together"),
        ("--output", pairs, "the input is among its files"),
        ("--input", tmp_path / "gone.jsonl", "no such file"),
    ):
        flags = {"--input": pairs, "--output": tmp_path / "o.jsonl", flag: value}
        done = run_tool(*(word for pair in flags.items() for word in pair), "--dry-run")
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    with pytest.raises(InputError, match="3 prices for 2 models"):
        Augmentation(pairs, tmp_path / "o.jsonl", AugmentOptions(MODELS)).estimate(Prices((1, 2, 3), (1, 2, 3)))


def test_the_augmented_groups_are_a_source_that_can_be_split(tmp_path, pairs):
    with ChatServer(misbehave) as server:
        augment(pairs, tmp_path / "a.jsonl", server, HASTY)
    content = prepare([f"cmd:ranked={tmp_path / 'a.jsonl'}"], tmp_path / "four.jsonl", split="20,5,5")
    groups = [group for part in ("train", "valid", "test") for group in read_groups(tmp_path / f"four.{part}.jsonl")]
    assert (
        len(groups) == content["rows"] == 30 and sum(group.preference_ranks == (0, -1, 2, 3) for group in groups) == 3
    )
