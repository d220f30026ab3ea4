"""One request for one webhook, again and again: what it costs the client, in time on the processor.

Ours has its repetitions, deadlines, limits and typed results on, as it comes. aiohttp by hand reads the whole answer,
checks its status, and leaves it as a dict.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import aiohttp
import asana
import orjson
from asana.api.webhooks_api import WebhooksApi

from asana_webhooks import AsanaSession, get_webhook
from benchmarks.canned import HEADERS, TOKEN, serving_pages
from benchmarks.harness import OURS, Case, Goal, Round
from benchmarks.processes import apart

TITLE: Final = "One request for one webhook"

RAW: Final = "aiohttp + orjson"
OFFICIAL: Final = "official asana, threads"

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


def ours(url: str, count: int, at_once: int) -> Round:
    async def main() -> Round:
        async with AsanaSession(TOKEN, base_url=url) as session:

            async def get(gid: str) -> str:
                return (await get_webhook(session, gid)).gid

            return await _measure(get, count, at_once)

    return asyncio.run(main())


def raw(url: str, count: int, at_once: int) -> Round:
    async def main() -> Round:
        async with aiohttp.ClientSession() as session:

            async def get(gid: str) -> str:
                async with session.get(f"{url}/webhooks/{gid}", headers=HEADERS) as response:
                    body = await response.read()
                assert response.status == 200
                found: str = orjson.loads(body)["data"]["gid"]
                return found

            return await _measure(get, count, at_once)

    return asyncio.run(main())


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
            webhook: dict[str, Any] = webhooks.get_webhook(str(next(number)), {})
            gids.append(webhook["gid"])

    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(work, [WARM_UP] * at_once))
        began = time.process_time()
        list(threads.map(work, [count // at_once] * at_once))
        seconds = time.process_time() - began
    return _round(seconds, count, gids)


def cases(*, quick: bool) -> Iterator[Case]:
    """Compare the clients with one request at a time, and with many at once."""
    count = 50 if quick else 500
    with apart(quick, 0) as own, serving_pages(1) as url:
        for at_once, most in ((1, 1.15), (50, 1.10)):
            yield Case(
                name=f"{at_once} at once",
                unit="µs of CPU time a request",
                competitors={
                    name: own(peer, url, count, at_once)
                    for name, peer in {OURS: ours, RAW: raw, OFFICIAL: official}.items()
                },
                reference=RAW,
                rounds=13,
                goals=[Goal(against=RAW, at_most=most), Goal(competitor=OFFICIAL, against=OURS, at_least=3)],
            )
