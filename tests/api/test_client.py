"""Chat completions from a server on loopback that misbehaves in every way: each answer once, each fault in one line."""

import email.utils
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.chat_server import ChatServer, Gate, answer_of, ask
from support.paths import TESTS

from megatron_chimed.api.client import CallSettings, ChatApi, ChatError, Completion
from megatron_chimed.api.log import ChatLog, complete_once
from megatron_chimed.errors import InputError

pytestmark = pytest.mark.slow
KEY = "sk-silence_import_warnings-1234567890abcdef"
QUICK = {"timeout": 60, "backoff": 0.01, "max_retries": 3}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A key, and no proxy between us and loopback."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def api_of(server, **settings):
    return ChatApi("m1", server.url, CallSettings(**{**QUICK, **settings}))


def question_of(body):
    return body["messages"][-1]["content"]


def complete(server, texts, **settings):
    return dict(api_of(server, **settings).complete_all([ask(text) for text in texts]))


def test_every_request_is_answered_once_under_its_key():
    with ChatServer() as server:
        options = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 3}
        found = dict(api_of(server).complete_all(ask(f"问{n}", **options) for n in range(40)))
    expected = {(f"问{n}",): f"m1 答：问{n}" for n in range(40)}
    assert {key: completion.text for key, completion in found.items()} == expected
    assert found["问7",] == Completion("m1 答：问7", finish="stop", prompt_tokens=10, completion_tokens=7)
    assert len(server.requests) == 40 and all(options.items() <= body.items() for body in server.requests)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_requests_under_way_reach_the_limit_and_never_pass_it():
    together = threading.Barrier(5, timeout=60)  # nobody is answered before five are there
    with ChatServer(lambda body, attempt: (together.wait(), None)[1]) as server:
        assert len(complete(server, map(str, range(40)), concurrency=5)) == 40
    assert server.most_at_once == 5


def test_requests_are_taken_as_they_are_sent():
    taken = []

    def requests():
        for number in range(100):
            taken.append(number)
            yield ask(str(number))

    with ChatServer() as server:
        results = api_of(server, concurrency=3).complete_all(requests())
        next(results)
        assert len(taken) == 3
        results.close()


PASSING = [
    408,
    409,
    429,
    500,
    502,
    503,
    "drop",
    "half",
    ("hang", 9),
    "trickle",
    b"",
    b"{",
    b"[]",
    b"nonsense",
    b'{"choices": []}',
]
PASSING += [b'{"choices": [{"message": {"content": 5}}]}', b'{"choices": [null]}', b"[" * 9000, b"\xff\xfe"]


REASONS = {"drop": "no connection", "half": "no connection", "trickle": "time-out", ("hang", 9): "time-out"}


@pytest.mark.parametrize("kind", PASSING, ids=lambda kind: str(kind)[:20])
def test_a_fault_of_a_moment_is_tried_again_until_the_answer_comes(kind):
    reason = f"HTTP {kind}" if isinstance(kind, int) else REASONS.get(kind, "malformed answer")
    with ChatServer(lambda body, attempt: kind if attempt < 2 else None) as server:
        api = api_of(server, timeout=1 if reason == "time-out" else 60, max_retries=9)
        assert dict(api.complete_all([ask("问")]))["问",].text == "m1 答：问"
    assert set(api.retried) == {reason} and len(server.requests) == 1 + api.retried.total() >= 3


def test_a_request_that_always_fails_is_failed_and_the_others_are_not_lost():
    with ChatServer(lambda body, attempt: 500 if question_of(body) == "3" else None) as server:
        found = complete(server, map(str, range(10)))
    assert found.pop(("3",)) == Completion(None, "HTTP 500", failed=True)
    assert len(found) == 9 and all(completion.text for completion in found.values())
    assert server.attempts["m1", "3", None] == 1 + QUICK["max_retries"]


def test_a_server_that_fails_always_is_given_up_in_one_line():
    with ChatServer(lambda body, attempt: 503) as server:
        with pytest.raises(ChatError, match=r"3 requests in a row failed \(HTTP 503\)") as error:
            complete(server, map(str, range(1000)), max_failures_in_row=3, concurrency=2)
        assert "\n" not in str(error.value) and len(server.requests) <= (3 + 2) * (1 + QUICK["max_retries"])
    with pytest.raises(ChatError, match="no connection"):  # nobody listens any more
        complete(server, map(str, range(20)), max_failures_in_row=3)


@pytest.mark.parametrize("max_retries", [0, 3])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_no_request_starts_before_the_time_that_retry_after_sets(form, max_retries):
    """The wait is the account's: without a second attempt at the first request the next one keeps it."""
    until, early = [], []
    seconds = 0.5 if form == "seconds" else 1.5  # a date has whole seconds: it may name a moment up to one earlier

    def behave(body, attempt):
        now = time.time()
        if until:
            early.extend([question_of(body)] if now < until[0] else [])
            return None
        until.append(now + seconds if form == "seconds" else int(now + seconds))
        date = email.utils.formatdate(now + seconds, usegmt=True)
        return (429, {"Retry-After": str(seconds) if form == "seconds" else date})

    with ChatServer(behave) as server:
        found = complete(server, "123", concurrency=1, max_retries=max_retries)
    assert not early and sum(completion.failed for completion in found.values()) == (max_retries == 0)
    assert len(server.requests) == 3 + (max_retries > 0)


@pytest.mark.parametrize("value", ["-5", "nan", "soon", "", "9" * 400, "Mon, 99 Foo 2026"])
def test_a_retry_after_without_sense_is_passed_over(value):
    with ChatServer(lambda body, attempt: (503, {"Retry-After": value}) if attempt == 0 else None) as server:
        if value == "9" * 400:
            with pytest.raises(ChatError, match="asks to wait inf s"):
                complete(server, ["问"])
        else:
            assert complete(server, ["问"])["问",].text


def test_too_long_a_retry_after_ends_the_run():
    with (
        ChatServer(lambda body, attempt: (429, {"Retry-After": "86400"})) as server,
        pytest.raises(ChatError, match=r"HTTP 429, and the server asks to wait 86400 s; try again then"),
    ):
        complete(server, ["问"])
    assert len(server.requests) == 1


def test_a_minute_sees_no_more_requests_than_allowed_retries_included():
    with ChatServer(lambda body, attempt: 500 if attempt == 0 else None) as server:
        started = time.monotonic()
        assert len(complete(server, map(str, range(5)), requests_per_minute=1200)) == 5
    assert len(server.requests) == 10
    assert time.monotonic() - started >= 9 * 60 / 1200


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, {"message": f"Incorrect API key provided: {KEY}\nsee the page"}, "OPENAI_API_KEY"),
        (403, {}, "OPENAI_API_KEY"),
        (404, {"message": "no model m1"}, "no model m1: check the model's name"),
        (400, {"message": "too long"}, "HTTP 400 to request 12: too long"),
        (422, {"message": None}, "HTTP 422"),
        (429, {"code": "insufficient_quota", "message": "You exceeded your quota"}, "no money left"),
    ],
)
def test_a_refusal_that_no_attempt_can_mend_ends_the_run_and_keeps_what_was_bought(status, error, message):
    def behave(body, attempt):
        return (status, {}, error) if question_of(body) == "12" else None

    found = {}
    with ChatServer(behave, delay=0.02) as server, pytest.raises(ChatError) as refusal:
        found.update(api_of(server, concurrency=4).complete_all([ask(str(n)) for n in range(100)]))
    text = str(refusal.value)
    assert message in text and server.url in text and "m1" in text
    assert "\n" not in text and KEY not in text and len(text) < 600
    assert server.attempts["m1", "12", None] == 1 and len(server.requests) < 100


def test_answers_under_way_are_yielded_before_the_error():
    refused = threading.Event()

    def behave(body, attempt):
        if question_of(body) == "0":
            refused.set()
            return (400, {}, {})
        refused.wait(60)
        time.sleep(0.2)
        return None

    found = []
    with ChatServer(behave) as server:
        with pytest.raises(ChatError):
            for key, completion in api_of(server, concurrency=4).complete_all(ask(str(n)) for n in range(50)):
                found.append((key[0], completion.text))
        assert {("1", "m1 答：1"), ("2", "m1 答：2"), ("3", "m1 答：3")} <= set(found)
        assert len(found) == server.num_answered.total() < 49


def test_nothing_is_tried_again_once_the_run_has_stopped():
    def behave(body, attempt):
        time.sleep(0.2 if question_of(body) == "0" else 0)
        return (401, {}, {}) if question_of(body) == "0" else 500

    with ChatServer(behave) as server:
        with pytest.raises(ChatError, match="HTTP 401"):
            complete(server, ["0", "1"], backoff=20)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"text": ""}, "empty"),
        ({"text": " \n"}, "empty"),
        ({"text": None}, "empty"),
        ({"text": None, "refusal": "不能回答"}, "refused"),
        ({"text": "一半", "finish_reason": "content_filter"}, "content filter"),
        ((400, {}, {"code": "content_filter"}), "content filter"),
    ],
)
def test_a_refusal_and_an_empty_answer_are_answers_with_a_reason(kind, reason):
    with ChatServer(lambda body, attempt: kind) as server:
        found = complete(server, ["问"])["问",]
    assert (found.text, found.reason, found.failed) == (None, reason, False) and len(server.requests) == 1


def test_half_a_character_in_an_answer_is_replaced():
    with ChatServer(lambda body, attempt: {"text": "好\ud800的"}) as server:
        assert complete(server, ["问"])["问",].text == "好?的"


def test_a_server_without_keys_is_asked_without_one(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with ChatServer() as server:
        assert complete(server, ["问"])["问",].text


@pytest.mark.parametrize(
    ("url", "key", "settings", "message"),
    [
        ("localhost:1/v1", KEY, {}, "http"),
        ("http://user:word@h/v1", KEY, {}, "without user, password and query"),
        ("http://h/v1?key=1", KEY, {}, "without user, password and query"),
        ("http://h/v1", "a b", {}, "OPENAI_API_KEY holds spaces"),
        ("http://h/v1", "密钥", {}, "OPENAI_API_KEY holds spaces"),
        ("http://h/v1", KEY, {"concurrency": 0}, "concurrency is 0"),
        ("http://h/v1", KEY, {"timeout": float("nan")}, "timeout is nan"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_sent(monkeypatch, url, key, settings, message):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=message) as error:
        ChatApi("m1", url, CallSettings(**settings))
    assert "word" not in str(error.value).replace("password", "") and "密钥" not in str(error.value)


# The log.


def once(server, texts, path, model="m1", **options):
    with ChatLog(path) as log:
        api = ChatApi(model, server.url, CallSettings(**QUICK))
        return dict(complete_once(api, [ask(text, **options) for text in texts], log))


def test_a_kept_answer_is_not_asked_for_again_and_another_question_is(tmp_path):
    path = tmp_path / "answers.jsonl"
    refuse = {"text": None, "refusal": "不"}
    with ChatServer(lambda body, attempt: refuse if question_of(body) == "2" else None) as server:
        first = once(server, "123", path)
        assert once(server, "1234", path) == first | {("4",): Completion("m1 答：4", "", False, "stop", 10, 6)}
        assert len(server.requests) == 4 and first["2",].reason == "refused"
        once(server, "1", path, model="m2")
        once(server, "1", path, temperature=0.5)
        assert len(server.requests) == 6
        once(server, "1", path, temperature=0.5)
        assert len(server.requests) == 6
    assert KEY not in path.read_text()


def test_what_failed_is_asked_for_again(tmp_path):
    with ChatServer(lambda body, attempt: 500 if attempt <= QUICK["max_retries"] else None) as server:
        assert once(server, "1", tmp_path / "a.jsonl")["1",].failed
        assert once(server, "1", tmp_path / "a.jsonl")["1",].text


def test_a_torn_last_line_is_cut_off_and_a_damaged_one_located(tmp_path):
    path = tmp_path / "a.jsonl"
    with ChatServer() as server:
        once(server, "123", path)
        whole = path.read_bytes()
        last = len(whole.splitlines(keepends=True)[-1])
        for cut in range(1, last + 1):
            path.write_bytes(whole[:-cut])
            with ChatLog(path):
                assert path.read_bytes() == whole[:-last]
        assert len(once(server, "123", path)) == 3 and len(server.requests) == 4
    for line in (b"\n", b"{}\n", b"[1]\n", b'{"key": [[]], "request": "", "completion": {"text": ""}}\n', b"\xff\n"):
        path.write_bytes(whole[: len(whole) - last] + line + whole)
        with pytest.raises(InputError, match=r"a\.jsonl:3: not a kept answer; remove the line"):
            ChatLog(path)


def test_two_processes_do_not_share_a_log(tmp_path):
    with ChatLog(tmp_path / "a.jsonl"), pytest.raises(InputError, match="another process is writing it"):
        ChatLog(tmp_path / "a.jsonl")
    ChatLog(tmp_path / "a.jsonl").close()


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
from support.chat_server import ask
from megatron_chimed.api.client import CallSettings, ChatApi
from megatron_chimed.api.log import ChatLog, complete_once
from megatron_chimed.errors import exit_cleanly
def main():
    api = ChatApi("m1", sys.argv[1], CallSettings(concurrency=4))
    with ChatLog(sys.argv[2]) as log:
        for _ in complete_once(api, [ask(str(n)) for n in range(60)], log):
            pass
exit_cleanly(main)
"""


def test_a_run_that_is_interrupted_says_one_line_and_goes_on_without_buying_anything_twice(tmp_path):
    path = tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", PROGRAM]
    places = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": places}
    gate = Gate(20)
    with ChatServer(gate) as server:
        process = subprocess.Popen([*command, server.url, path], env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 20):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and len(errors.splitlines()) == 1, errors
        assert "interrupted; what is finished is kept" in errors
        kept = {json.loads(line)["key"][0] for line in path.read_bytes().decode().split("\n")[:-1]}
        assert len(kept) == 20
        gate.opened.set()
        done = subprocess.run([*command, server.url, path], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = {row["key"][0]: row["completion"]["text"] for row in rows}
    assert texts == {str(n): answer_of({"model": "m1", "messages": [{"content": str(n)}]}) for n in range(60)}
    assert len(rows) == 60 and all(server.attempts["m1", question, None] == 1 for question in kept)
    assert sum(server.attempts.values()) <= 60 + 4  # those that were under way had not arrived
