"""Several servers of one model: who gets the next request, and who is left alone for a while."""

import asyncio
import email.utils
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

OPENAI_URL = "https://api.openai.com/v1"


class Server:
    """One of them. client: sends its requests; under_way: how many are there now; served: how many have been."""

    def __init__(self, url: str, client: Any):
        self.url, self.client, self.under_way, self.served = url, client, 0, 0
        self.failures, self.rests_until = 0, 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """For the time of a request; its end without an exception is that of a rest."""
        self.under_way += 1
        try:
            yield
            self.failures, self.rests_until = 0, 0.0
        finally:
            self.under_way, self.served = self.under_way - 1, self.served + 1


class Servers:
    """All servers of a model, in one event loop."""

    def __init__(self, urls: Sequence[str], make_client: Callable[[str], Any]):
        self.all = [Server(url, make_client(url)) for url in urls]

    def choose(self, tried: Collection[Server] = ()) -> Server:
        """The server of the next attempt: the one with the fewest requests under way, of those that do not rest and
        that the request has not `tried`; if there is none, the one whose rest ends first."""
        return min(self._up(tried) or self.all, key=lambda one: (one.rests_until, one.under_way, one.served))

    def rest(self, server: Server, seconds: float, longest: float) -> None:
        """Leave a server alone that has failed: for so many seconds, doubled for each failure in a row up to `longest`,
        so that one that is gone costs little."""
        seconds = max(seconds, min(longest, seconds * 2.0**server.failures))
        server.failures += 1
        server.rests_until = asyncio.get_running_loop().time() + seconds

    def another(self, tried: Collection[Server]) -> bool:
        """Whether a server is up that the request has not tried."""
        return bool(self._up(tried))

    def _up(self, tried: Collection[Server]) -> list[Server]:
        now = asyncio.get_running_loop().time()
        up = [one for one in self.all if one not in tried and one.rests_until <= now]
        for one in up:
            one.rests_until = 0.0
        return up

    async def close(self) -> None:
        """Close all connections."""
        for one in self.all:
            await one.client.close()


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds of a Retry-After header, which is a number or a date; 0 without one, or with nonsense in it."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0
