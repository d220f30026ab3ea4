"""One request for one webhook, again and again: what it costs the client, in time on the processor.

Ours has its repetitions, deadlines, limits and typed results on, as it comes. The raw clients read the whole answer,
check its status, and leave it as a dict. The limit is a protocol that knows these answers and nothing else.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Final, cast

import aiohttp
import asana
import httpx
import orjson
import uvloop
from asana.api.webhooks_api import WebhooksApi
from yarl import URL

from asana_webhooks import AsanaSession, get_webhook
from benchmarks.canned import FIELDS, HEADERS, TOKEN, base_url, counted, serve
from benchmarks.harness import OURS, Case, Goal, Round, Size
from benchmarks.processes import apart, listener, serving

__all__ = ["TITLE", "cases"]

TITLE: Final = "One request for one webhook"

RAW: Final = "aiohttp + orjson"
OFFICIAL: Final = "official asana, threads"
LIMIT: Final = "bare protocol + orjson"

FIRST_GID: Final = 1_300_000_000_000_000
WARM_UP: Final = 2
"""Requests of each worker before the clock starts; they make the connections."""

Get = Callable[[str], Awaitable[str]]
"""Asks for the webhook of a gid; returns the gid that came."""


async def _measure(get: Get, count: int, at_once: int) -> Round:
    """Ask for *count* webhooks, each worker for the next one as soon as it has its last."""
    gids: list[str] = []
    number = iter(range(FIRST_GID, FIRST_GID + 1_000_000))

    async def work(requests: int) -> None:
        for _ in range(requests):
            gid = await get(str(next(number)))
            gids.append(gid)

    await asyncio.gather(*(work(WARM_UP) for _ in range(at_once)))
    began = time.process_time()
    await asyncio.gather(*(work(count // at_once) for _ in range(at_once)))
    seconds = time.process_time() - began
    return _round(seconds, count, gids)


def _round(seconds: float, count: int, gids: list[str]) -> Round:
    return Round(value=seconds / count * 1e6, work=(len(gids), sum(map(int, gids))))


async def _ours(url: str, count: int, at_once: int) -> Round:
    async with AsanaSession(TOKEN, base_url=url) as session:

        async def get(gid: str) -> str:
            return (await get_webhook(session, gid)).gid

        return await _measure(get, count, at_once)


async def _aiohttp(url: str, count: int, at_once: int) -> Round:
    async with aiohttp.ClientSession() as session:

        async def get(gid: str) -> str:
            params = {"opt_fields": FIELDS}
            async with session.get(f"{url}/webhooks/{gid}", params=params, headers=HEADERS) as response:
                body = await response.read()
            assert response.status == 200
            found: str = orjson.loads(body)["data"]["gid"]
            return found

        return await _measure(get, count, at_once)


async def _httpx(url: str, count: int, at_once: int) -> Round:
    async with httpx.AsyncClient(headers=HEADERS) as client:

        async def get(gid: str) -> str:
            response = await client.get(f"{url}/webhooks/{gid}", params={"opt_fields": FIELDS})
            assert response.status_code == 200
            found: str = orjson.loads(response.content)["data"]["gid"]
            return found

        return await _measure(get, count, at_once)


class _Connection(asyncio.Protocol):
    """Sends requests, and looks for the end of each answer by its length alone."""

    def __init__(self) -> None:
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def get(self, request: bytes) -> bytes:
        self._came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._came

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, _, body = self._answer.partition(b"\r\n\r\n")
        if len(body) == int(head.rpartition(b"Content-Length: ")[2]):
            assert head.startswith(b"HTTP/1.1 200 ")
            self._answer = b""
            self._came.set_result(body)

    def close(self) -> None:
        self._transport.close()


async def _bare(url: str, count: int, at_once: int) -> Round:
    target, loop = URL(url), asyncio.get_running_loop()
    host, port = str(target.host), int(target.port or 80)
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    idle = [(await loop.create_connection(_Connection, host, port))[1] for _ in range(at_once)]

    async def get(gid: str) -> str:
        connection = idle.pop()
        line = f"GET {target.path}/webhooks/{gid}?opt_fields={FIELDS} HTTP/1.1\r\nHost: {target.authority}\r\n"
        body = await connection.get(f"{line}{head}\r\n".encode())
        idle.append(connection)
        found: str = orjson.loads(body)["data"]["gid"]
        return found

    try:
        return await _measure(get, count, at_once)
    finally:
        for connection in idle:
            connection.close()


# What each competitor's process runs


def ours(url: str, count: int, at_once: int) -> Round:
    return asyncio.run(_ours(url, count, at_once))


def ours_uvloop(url: str, count: int, at_once: int) -> Round:
    return uvloop.run(_ours(url, count, at_once))


def raw(url: str, count: int, at_once: int) -> Round:
    return asyncio.run(_aiohttp(url, count, at_once))


def raw_uvloop(url: str, count: int, at_once: int) -> Round:
    return uvloop.run(_aiohttp(url, count, at_once))


def on_httpx(url: str, count: int, at_once: int) -> Round:
    return asyncio.run(_httpx(url, count, at_once))


def bare(url: str, count: int, at_once: int) -> Round:
    return asyncio.run(_bare(url, count, at_once))


def official(url: str, count: int, at_once: int) -> Round:
    """As many threads as requests at once; time on the processor is that of all threads."""
    configuration = asana.Configuration()
    configuration.host, configuration.access_token = url, TOKEN
    configuration.connection_pool_maxsize = at_once
    webhooks = WebhooksApi(asana.ApiClient(configuration))
    gids: list[str] = []
    number = iter(range(FIRST_GID, FIRST_GID + 1_000_000))

    def work(requests: int) -> None:
        for _ in range(requests):
            webhook: dict[str, Any] = webhooks.get_webhook(str(next(number)), {"opt_fields": FIELDS})
            gids.append(webhook["gid"])

    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(work, [WARM_UP] * at_once))
        began = time.process_time()
        list(threads.map(work, [count // at_once] * at_once))
        seconds = time.process_time() - began
    return _round(seconds, count, gids)


PEERS: Final = {
    OURS: ours,
    f"{OURS}, uvloop": ours_uvloop,
    RAW: raw,
    f"{RAW}, uvloop": raw_uvloop,
    OFFICIAL: official,
    "httpx + orjson": on_httpx,
    LIMIT: bare,
}


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare the clients with one request at a time, and with many at once."""
    with apart(size, 0) as own, closing(listener()) as listening, serving(serve, listening, 1, 0.0, core=1) as pipe:

        def compared() -> Iterator[Case]:
            for at_once in (1, 50):
                count = size.of(500, quick=50)
                competitors = {
                    name: counted(own(peer, base_url(listening), count, at_once), pipe) for name, peer in PEERS.items()
                }
                yield Case(
                    name=f"{at_once} at once",
                    unit="µs of CPU time a request",
                    competitors=competitors,
                    reference=RAW,
                    rounds=13,
                    goals=[
                        Goal(against=RAW, at_most=1.15),
                        Goal(competitor=OFFICIAL, against=OURS, at_least=3),
                    ],
                )

        yield compared()
