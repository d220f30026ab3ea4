"""Scenes that began hours ago, and time that passes when a test says so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from attrs import define, field
from yarl import URL

from asana_webhooks import AsanaSession, MemoryStore, Receiver, RetryPolicy
from asana_webhooks.testing import FakeAsana, FakeClock, serve_receiver
from tests.subscriptions.scenes import Scene, no_wait

HOUR = 3600.0


@asynccontextmanager
async def earlier(hours: float, **options: Any) -> AsyncIterator[tuple[Scene, AsyncExitStack]]:
    """Set the scene that many hours ago; closing the stack stops its receiver. *options* are the fake's."""
    clock = FakeClock(start=datetime.now(UTC) - timedelta(hours=hours))
    policy = RetryPolicy(attempts=2, sleep=no_wait)
    async with (
        FakeAsana(clock=clock, **options) as fake,
        AsanaSession(fake.token, base_url=fake.url, retry=policy) as asana,
        MemoryStore(clock=clock.time) as store,
        AsyncExitStack() as receiving,
    ):
        public_url = await receiving.enter_async_context(serve_receiver(Receiver(store)))
        yield Scene(fake, asana, store, public_url), receiving


def port_of(public_url: str) -> int:
    """Return the port of a receiver."""
    return URL(public_url).port or 0


@asynccontextmanager
async def answering(public_url: str, status: int) -> AsyncIterator[None]:
    """Answer everything where a receiver was, and quote the path as some servers do."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, text=f"The requested URL {request.path} was not found")

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port_of(public_url)).start()
        yield
    finally:
        await runner.cleanup()


@define
class Turned:
    """Stands in for `asyncio` and `time` in a module: whatever sleeps there lets the fake's clock go on meanwhile."""

    fake: FakeAsana
    slept: list[float] = field(factory=list)
    advance: Callable[[float], Awaitable[None]] | None = None
    """What to do in place of the fake's `advance`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    def time(self) -> float:
        return self.fake.clock.time()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await (self.advance or self.fake.advance)(seconds)


@define
class Rounds:
    """Stands in for `asyncio` in a module that does something again and again: it sleeps until the test says so."""

    slept: list[float] = field(factory=list)
    _asleep: asyncio.Event = field(factory=asyncio.Event)
    _wake: asyncio.Event = field(factory=asyncio.Event)
    _begun: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._asleep.set()
        await self._wake.wait()
        self._wake.clear()

    async def asleep(self, number: int) -> None:
        """Return when that many are asleep for the first time."""
        while len(self.slept) < number:
            self._asleep.clear()
            await self._asleep.wait()

    async def next(self) -> None:
        """Let one round pass; the first one has begun by itself."""
        if self._begun:
            self._wake.set()
        self._begun = True
        await self._asleep.wait()
        self._asleep.clear()
