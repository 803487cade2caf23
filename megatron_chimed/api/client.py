"""Chat completions of any OpenAI-compatible server: many at once, paced, tried again, every fault in one line.

The official client sends the requests; this module alone decides about trying again. The client's own retries are off:
their waits are fixed (8 s at most), they ignore a limit on requests per minute, and an answer that is no JSON is not
asked for again. The key comes from the environment alone (OPENAI_API_KEY) and stands in no message and no file.
"""

import asyncio
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai

from megatron_chimed.api.servers import OPENAI_URL, Server, Servers, retry_after
from megatron_chimed.errors import InputError, one_line

KEY_VARIABLE = "OPENAI_API_KEY"
PASSING = (408, 409, 429)  # and 5xx: statuses of a moment, the same request may succeed later
HINTS = {
    401: f"the key is missing or wrong; set {KEY_VARIABLE}",
    403: f"the key in {KEY_VARIABLE} may not use this model",
    404: "check the model's name and the base URL (it ends in /v1 as a rule)",
}


class ChatRequest(NamedTuple):
    """What a model is asked. A plain tuple of three does as well.

    key: comes back with the answer; messages: ``[{"role": "user", "content": "..."}]``; options: what else the server
    is told, of temperature, top_p, max_tokens and seed. n answers to a prompt are n requests with seeds of their own.
    """

    key: Hashable
    messages: list[dict[str, str]]
    options: Mapping[str, Any] = {}  # noqa: RUF012, nobody changes it


@dataclass(frozen=True)
class Completion:
    """An answer, or the reason why there is none.

    text: None without an answer; reason: "content filter", "refused" or "empty" where the server answered so (and is
    paid), with `failed` what came in place of an answer at the last attempt; finish: the server's finish_reason, "stop"
    or "length" as a rule; prompt_tokens, completion_tokens: as the server counts them, 0 where it does not.
    """

    text: str | None
    reason: str = ""
    failed: bool = False
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class CallSettings:
    """How a server is called.

    concurrency: requests under way at once; requests_per_minute: of all attempts, 0 for no limit; timeout: seconds for
    one attempt as a whole; max_retries: attempts after the first; backoff: seconds before the second attempt, doubled
    for each further one up to max_backoff, less up to a half at random; max_retry_after: seconds that a server may ask
    to wait, beyond which the run stops; max_failures_in_row: requests that failed at all attempts and stop the run.
    """

    concurrency: int = 8
    requests_per_minute: float = 0
    timeout: float = 120.0
    max_retries: int = 6
    backoff: float = 1.0
    max_backoff: float = 60.0
    max_retry_after: float = 600.0
    max_failures_in_row: int = 10

    def __post_init__(self) -> None:
        """Raises InputError for a value out of its range."""
        for name, least in {
            "concurrency": 1,
            "requests_per_minute": 0,
            "max_retries": 0,
            "max_failures_in_row": 1,
        }.items():
            if not least <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from {least}")
        for name in ("timeout", "backoff", "max_backoff", "max_retry_after"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected seconds above 0")


class ChatError(InputError):
    """The server refuses what no further attempt can mend, or cannot be reached. The message is one full line."""


class _Failed(Exception):
    """An attempt that may succeed another time; wait: the seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass
class ChatApi:
    """A model behind an OpenAI-compatible server.

    base_url: up to and with ``/v1``, without a user, password or query. retried: failed attempts by reason, counted on.
    others: further servers of the same model, which share its requests; what one of them fails at the next one tries.
    Raises InputError on a URL of another form, a key that is no single printable word, or a setting out of range.
    """

    model: str
    base_url: str = OPENAI_URL
    settings: CallSettings = CallSettings()
    retried: Counter = field(default_factory=Counter)
    others: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the URLs and the key before anything is sent."""
        self.base_url, *self.others = (url.rstrip("/") for url in (self.base_url, *self.others))
        for url in map(urlsplit, self.urls):
            if url.scheme not in ("http", "https") or not url.hostname or url.query or "@" in url.netloc:
                raise InputError("the base URL must be http(s)://HOST[:PORT]/PATH without user, password and query")
        if len(set(self.urls)) < len(self.urls):
            raise InputError("a base URL is given twice; name each server once")
        if not self.model:
            raise InputError("the model's name is empty")
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not re.fullmatch("[!-~]*", self._key):
            raise InputError(f"{KEY_VARIABLE} holds spaces or characters that no key has; set it again")

    @property
    def urls(self) -> list[str]:
        """Those of all servers."""
        return [self.base_url, *self.others]

    def complete_all(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[Hashable, Completion]]:
        """Yield (key, completion) of every request, in the order in which the answers arrive.

        Requests are taken from the iterable as they are sent. A request that fails at all attempts yields a completion
        with `failed`. Attempts go on only while the caller asks for the next result, so it should not dawdle.
        Raises ChatError on a refusal that concerns all requests (a 4xx but 408, 409 and 429, no money, too long a
        Retry-After, nothing but failures), after the answers that were under way have been yielded.
        """
        todo, under_way, failures, stop = iter(requests), set(), 0, None
        with asyncio.Runner() as runner:
            calls = _Calls(self)
            try:
                while True:
                    while not stop and len(under_way) < self.settings.concurrency and (request := next(todo, None)):
                        under_way.add(runner.get_loop().create_task(calls.complete(*request)))
                    if not under_way:
                        break
                    done, under_way = runner.run(asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED))
                    for task in done:
                        if error := task.exception():
                            stop = stop or error
                        elif result := task.result():
                            yield result
                            failures = failures + 1 if result[1].failed else 0
                            if failures >= self.settings.max_failures_in_row:
                                stop = stop or self.fault(f"{failures} requests in a row failed ({result[1].reason})")
                    if stop:
                        calls.stopped.set()
            finally:
                runner.run(calls.servers.close())
        if stop:
            raise stop

    def fault(self, reason: str, url: str = "") -> ChatError:
        """An error that names server (all if not one) and model, and never the key."""
        reason = reason.replace(self._key, "...") if self._key else reason
        return ChatError(f"{url or ', '.join(self.urls)}, model {self.model}: {reason}; what has arrived is kept")


class _Calls:
    """The calls of one `complete_all`, which share a connection pool, a pace and a sign to stop."""

    def __init__(self, api: ChatApi):
        self.api, self.settings = api, api.settings
        # A server of one's own may want no key; the client insists on some.
        key = api._key or "none"
        settings = {"api_key": key, "max_retries": 0, "timeout": self.settings.timeout}
        self.servers = Servers(api.urls, lambda url: openai.AsyncOpenAI(base_url=url, **settings))
        self.stopped, self.turn, self.next_start = asyncio.Event(), asyncio.Lock(), 0.0

    async def complete(
        self, key: Hashable, messages: list, options: Mapping = {}
    ) -> tuple[Hashable, Completion] | None:
        """The answer to one request; None when the run has stopped before it was sent. Raises ChatError."""
        tried: set[Server] = set()  # since the last wait: a server's fault is no attempt while another one is up
        attempt = 0
        while True:
            await self._take_turn()
            if self.stopped.is_set():
                return None
            server = self.servers.choose(tried)
            try:
                with server.busy():
                    return key, await self._attempt(server, key, messages, options)
            except _Failed as error:
                failure = error
                self.api.retried[str(error)] += 1
            tried.add(server)
            self.servers.rest(server, failure.wait or self.settings.backoff, self.settings.max_backoff)
            if self.servers.another(tried):
                continue
            self._heed(failure, server)
            if attempt == self.settings.max_retries:
                return key, Completion(None, str(failure), failed=True)
            backoff = min(self.settings.max_backoff, self.settings.backoff * 2.0**attempt)
            await self._sleep(backoff * random.uniform(0.5, 1.0))
            attempt, tried = attempt + 1, set()

    def _heed(self, failure: _Failed, server: Server) -> None:
        """Put off the next start as a server asks. Raises ChatError where that is too long."""
        if failure.wait > self.settings.max_retry_after:
            asked = f"{failure}, and the server asks to wait {failure.wait:.0f} s; try again then"
            raise self.api.fault(asked, server.url)
        if failure.wait:  # it holds for all that start from now on: the limit is the account's, not the request's
            self.next_start = max(self.next_start, asyncio.get_running_loop().time() + failure.wait)

    async def _take_turn(self) -> None:
        """Wait for the moment at which the next request may start."""
        loop, limit = asyncio.get_running_loop(), self.settings.requests_per_minute
        async with self.turn:
            while (wait := self.next_start - loop.time()) > 0 and not self.stopped.is_set():
                await self._sleep(wait)  # a Retry-After that comes meanwhile puts the start off
            self.next_start = loop.time() + (60.0 / limit if limit else 0.0)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or be woken when the run stops."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            pass

    async def _attempt(self, server: Server, key: Hashable, messages: list, options: Mapping) -> Completion:
        """Send the request once. Raises _Failed or ChatError."""
        try:
            async with asyncio.timeout(self.settings.timeout):  # the client's own is for each read, not for all
                create = server.client.chat.completions.with_raw_response.create
                answer = await create(model=self.api.model, messages=messages, **options)
            return _completion(answer.text)
        except (TimeoutError, openai.APITimeoutError):
            raise _Failed("time-out") from None
        except openai.APIConnectionError:
            raise _Failed("no connection") from None
        except openai.APIStatusError as error:
            return self._refusal(server, key, error)

    def _refusal(self, server: Server, key: Hashable, error: openai.APIStatusError) -> Completion:
        """A completion without text where the filter refused the prompt; else raises _Failed or ChatError."""
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        code, message = str(body.get("code")), one_line(ValueError(body.get("message") or error.message))[:300]
        if status == 400 and code in ("content_filter", "content_policy_violation"):
            return Completion(None, "content filter", finish="content_filter")
        if code == "insufficient_quota":
            raise self.api.fault(f"HTTP {status}: {message}: the account has no money left", server.url)
        if status in PASSING or status >= 500:
            raise _Failed(f"HTTP {status}", retry_after(error.response.headers))
        asked = f"HTTP {status} to request {' '.join(map(str, key)) if isinstance(key, tuple) else key}"
        raise self.api.fault(f"{asked}: {message}" + (f": {HINTS[status]}" if status in HINTS else ""), server.url)


def _completion(content: str) -> Completion:
    """The completion in the body of an answer. Raises _Failed when it holds none."""
    try:
        body = json.loads(content)
        choice, usage = body["choices"][0], body.get("usage") or {}
        text, refusal = (choice["message"].get(name) for name in ("content", "refusal"))
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise _Failed("malformed answer") from None
    if not isinstance(text, str | None):
        raise _Failed("malformed answer")
    finish = str(choice.get("finish_reason") or "")
    text = (text or "").encode(errors="replace").decode().strip()  # half a character has no place in a file
    reason = "content filter" if finish == "content_filter" else "refused" if refusal else "" if text else "empty"
    prompt, completion = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return Completion(None if reason else text, reason, False, finish, prompt, completion)
