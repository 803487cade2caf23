"""Several servers of one model: the load is spread, and what one of them fails at another one does."""

import socket

import pytest
from support.chat_server import ChatServer, ask

from megatron_chimed.api.client import CallSettings, ChatApi, ChatError
from megatron_chimed.errors import InputError

pytestmark = pytest.mark.slow
TEXTS = [f"问{number}" for number in range(40)]
PATIENT = {"timeout": 60, "backoff": 50.0, "max_backoff": 60.0}
"""A run that waits for a server hangs."""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No key, and no proxy between us and loopback."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def complete(urls: list[str], **settings) -> dict:
    api = ChatApi("m1", urls[0], CallSettings(**PATIENT | settings), others=urls[1:])
    return {key: one.text for key, one in api.complete_all([ask(text) for text in TEXTS])}


def nowhere() -> str:
    """The URL of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


EXPECTED = {(text,): f"m1 答：{text}" for text in TEXTS}


@pytest.mark.parametrize("concurrency", [1, 6])
def test_servers_share_the_requests_evenly(concurrency):
    with ChatServer(delay=0.01) as one, ChatServer(delay=0.01) as other:
        assert complete([one.url, other.url], concurrency=concurrency) == EXPECTED
    assert len(one.requests) + len(other.requests) == 40
    assert min(len(one.requests), len(other.requests)) >= 15
    assert one.most_at_once + other.most_at_once <= concurrency + 1


def broken_after(number: int, fault: object):
    """The behaviour of a server that fails at all but the first requests."""
    left = iter(range(number))
    return lambda body, attempt: None if next(left, None) is not None else fault


@pytest.mark.parametrize("fault", ["drop", "half", 503, (429, {"Retry-After": "1000"})], ids=str)
def test_a_server_that_fails_in_the_middle_costs_no_attempt_and_no_wait(fault):
    with ChatServer(broken_after(5, fault), delay=0.01) as one, ChatServer(delay=0.01) as other:
        assert complete([one.url, other.url], concurrency=4, max_retries=0) == EXPECTED
    assert one.num_answered.total() >= 5 - (fault == "half") and len(other.requests) >= 30
    assert len(one.requests) < 15, "one that has failed is left alone"


def test_a_server_that_is_not_there_is_passed_over():
    with ChatServer() as server:
        assert complete([nowhere(), server.url, nowhere()], concurrency=4, max_retries=0) == EXPECTED


def test_a_server_that_is_back_gets_work_again():
    faults = iter(["drop"] * 2)
    with ChatServer(lambda body, attempt: next(faults, None), delay=0.02) as one, ChatServer(delay=0.02) as other:
        assert complete([one.url, other.url], concurrency=2, backoff=0.05, max_backoff=0.05) == EXPECTED
    assert one.num_answered.total() > 3


def test_without_any_server_the_error_names_all():
    urls = [nowhere(), nowhere()]
    with pytest.raises(ChatError, match=f"^{urls[0]}, {urls[1]}, model m1: 10 requests in a row failed .no connection"):
        complete(urls, max_retries=1, backoff=0.01, concurrency=4)


def test_a_refusal_of_all_requests_names_the_server_that_refuses():
    with ChatServer(lambda body, attempt: 404) as one, ChatServer() as other, pytest.raises(ChatError) as error:
        complete([one.url, other.url], concurrency=4)
    assert str(error.value).startswith(f"{one.url}, model m1: HTTP 404")


@pytest.mark.parametrize(
    ("others", "message"),
    [(["http://a/v1/"], "a base URL is given twice"), (["b/v1"], "must be http"), ([""], "must be http")],
)
def test_a_list_that_is_none_is_refused(others, message):
    with pytest.raises(InputError, match=message):
        ChatApi("m1", "http://a/v1", others=others)
