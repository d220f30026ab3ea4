"""Ways to walk through all webhooks of a workspace: ours, a loop by hand, and the official client's iterator.

Each gives a consumer the gids of each page as soon as it has them, and keeps nothing. The functions are what each
competitor's process runs; they take the address of `benchmarks.canned`, and the consumer.
"""

import asyncio
import time
from typing import Any

import aiohttp
import asana
import orjson
from asana.api.webhooks_api import WebhooksApi
from attrs import define

from asana_webhooks import AsanaSession, get_webhooks
from benchmarks.canned import FIELDS, HEADERS, PAGE, TOKEN, WORKSPACE

__all__ = ["Consumer", "by_hand", "official", "ours", "ours_by_page", "ours_with_prefetch"]


@define
class Consumer:
    """Takes pages, and works on each of them for a while."""

    seconds: float = 0.0
    burning: bool = False
    """Whether it keeps the processor busy for so long, and does not await."""
    count: int = 0
    total: int = 0
    """The sum of all gids."""

    async def take(self, gids: list[str]) -> None:
        """Work on a page."""
        if self.seconds and not self.burning:
            self._note(gids)
            await asyncio.sleep(self.seconds)
        else:
            self.take_blocking(gids)

    def take_blocking(self, gids: list[str]) -> None:
        """Work on a page where nothing can be awaited."""
        self._note(gids)
        if self.burning:
            end = time.thread_time() + self.seconds
            while time.thread_time() < end:
                pass
        elif self.seconds:
            time.sleep(self.seconds)

    def _note(self, gids: list[str]) -> None:
        self.count += len(gids)
        self.total += sum(map(int, gids))


def ours(url: str, consumer: Consumer) -> None:
    """Webhook by webhook."""

    async def walk() -> None:
        gids: list[str] = []
        async with AsanaSession(TOKEN, base_url=url) as session:
            async for webhook in get_webhooks(session, workspace=WORKSPACE):
                gids.append(webhook.gid)
                if len(gids) == PAGE:
                    await consumer.take(gids)
                    gids = []

    asyncio.run(walk())


def ours_by_page(url: str, consumer: Consumer) -> None:
    async def walk() -> None:
        async with AsanaSession(TOKEN, base_url=url) as session:
            async for page in get_webhooks(session, workspace=WORKSPACE).pages():
                await consumer.take([webhook.gid for webhook in page.items])

    asyncio.run(walk())


def ours_with_prefetch(url: str, consumer: Consumer) -> None:
    async def walk() -> None:
        async with (
            AsanaSession(TOKEN, base_url=url) as session,
            get_webhooks(session, workspace=WORKSPACE, prefetch=True) as pager,
        ):
            async for page in pager.pages():
                await consumer.take([webhook.gid for webhook in page.items])

    asyncio.run(walk())


def by_hand(url: str, consumer: Consumer) -> None:
    async def walk() -> None:
        params = {"workspace": WORKSPACE, "limit": str(PAGE), "opt_fields": FIELDS}
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{url}/webhooks", params=params, headers=HEADERS) as response:
                    body = await response.read()
                assert response.status == 200
                page = orjson.loads(body)
                await consumer.take([webhook["gid"] for webhook in page["data"]])
                if page["next_page"] is None:
                    return
                params["offset"] = page["next_page"]["offset"]

    asyncio.run(walk())


def official(url: str, consumer: Consumer) -> None:
    configuration = asana.Configuration()
    configuration.host, configuration.access_token = url, TOKEN
    webhooks: Any = WebhooksApi(asana.ApiClient(configuration)).get_webhooks(WORKSPACE, {"opt_fields": FIELDS})
    gids: list[str] = []
    for webhook in webhooks:
        gids.append(webhook["gid"])
        if len(gids) == PAGE:
            consumer.take_blocking(gids)
            gids = []
