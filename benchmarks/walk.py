"""Walking through all webhooks of a workspace: of a server that answers at once, and of one that takes its time.

Offsets are sequential, so no walk is faster than pages x latency, and with what a loop and a server need besides, none
is faster than a loop by hand that does nothing with its pages. Fetching the next page while one is worked on comes near
that, also where the work never awaits.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import aiohttp
import asana
import orjson
from asana.api.webhooks_api import WebhooksApi
from attrs import define

from asana_webhooks import AsanaSession, get_webhooks
from benchmarks.canned import FIELDS, HEADERS, PAGE, TOKEN, WORKSPACE, serving_pages
from benchmarks.harness import OURS, Case, Goal, Round
from benchmarks.processes import apart

TITLE: Final = "Walking through pages of 100 webhooks"

RAW: Final = "loop by hand, aiohttp + orjson"
OFFICIAL: Final = "official asana"
IDLE: Final = "loop by hand that does no work"

LATENCY: Final = 0.050
WORK: Final = 0.020


@define
class Tally:
    """Counts the webhooks of each page, and keeps none."""

    count: int = 0
    total: int = 0
    """The sum of all gids."""

    def add(self, gids: list[str]) -> None:
        """Count a page."""
        self.count += len(gids)
        self.total += sum(map(int, gids))


def ours(url: str, tally: Tally) -> None:
    async def walk() -> None:
        gids: list[str] = []
        async with AsanaSession(TOKEN, base_url=url) as session:
            async for webhook in get_webhooks(session, workspace=WORKSPACE):
                gids.append(webhook.gid)
                if len(gids) == PAGE:
                    tally.add(gids)
                    gids = []

    asyncio.run(walk())


def prefetching(url: str, tally: Tally, *, awaiting: bool) -> None:
    """Work on each page: await something, or keep the processor busy and await nothing."""

    async def walk() -> None:
        async with (
            AsanaSession(TOKEN, base_url=url) as session,
            get_webhooks(session, workspace=WORKSPACE, prefetch=True) as pager,
        ):
            async for page in pager.pages():
                tally.add([webhook.gid for webhook in page.items])
                if awaiting:
                    await asyncio.sleep(WORK)
                else:
                    end = time.thread_time() + WORK
                    while time.thread_time() < end:
                        pass

    asyncio.run(walk())


def by_hand(url: str, tally: Tally) -> None:
    async def walk() -> None:
        params = {"workspace": WORKSPACE, "limit": str(PAGE), "opt_fields": FIELDS}
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{url}/webhooks", params=params, headers=HEADERS) as response:
                    body = await response.read()
                assert response.status == 200
                page = orjson.loads(body)
                tally.add([webhook["gid"] for webhook in page["data"]])
                if page["next_page"] is None:
                    return
                params["offset"] = page["next_page"]["offset"]

    asyncio.run(walk())


def official(url: str, tally: Tally) -> None:
    configuration = asana.Configuration()
    configuration.host, configuration.access_token = url, TOKEN
    webhooks: Any = WebhooksApi(asana.ApiClient(configuration)).get_webhooks(WORKSPACE, {"opt_fields": FIELDS})
    gids: list[str] = []
    for webhook in webhooks:
        gids.append(webhook["gid"])
        if len(gids) == PAGE:
            tally.add(gids)
            gids = []


Walker = Callable[[str, Tally], None]


def walk(walker: Walker, url: str, last_work: float = 0.0) -> Round:
    """Measure the seconds until the last page is there; that long it is worked on after that."""
    tally = Tally()
    began = time.perf_counter()
    walker(url, tally)
    return Round(value=time.perf_counter() - began - last_work, work=(tally.count, tally.total))


def cases(*, quick: bool) -> Iterator[Case]:
    """Compare the walkers with a quick server, and prefetching with a slow one."""
    pages = 10 if quick else 100
    with apart(quick, 0) as own, serving_pages(pages) as url:
        yield Case(
            name=f"{pages * PAGE:,} webhooks, no latency",
            unit="seconds",
            competitors={
                name: own(walk, walker, url) for name, walker in {OURS: ours, RAW: by_hand, OFFICIAL: official}.items()
            },
            reference=RAW,
            rounds=15,
            goals=[Goal(against=RAW, at_most=1.2), Goal(against=OFFICIAL, at_most=1)],
        )
    pages = 3 if quick else 30
    with apart(quick, 0) as own, serving_pages(pages, LATENCY) as url:
        names = {f"{OURS}, prefetch": True, f"{OURS}, prefetch, work that never awaits": False}
        yield Case(
            name=f"{pages} pages of {LATENCY * 1e3:g} ms, {WORK * 1e3:g} ms of work on each",
            unit="seconds",
            competitors={
                IDLE: own(walk, by_hand, url),
                **{name: own(walk, partial(prefetching, awaiting=value), url, WORK) for name, value in names.items()},
            },
            reference=IDLE,
            rounds=3,
            goals=[Goal(competitor=name, against=IDLE, at_most=1.03) for name in names],
        )
