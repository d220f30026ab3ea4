"""A store that is slow, full or away: Asana is told at once, or gives up; nothing is lost, and nothing doubled."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from asana_webhooks import MemoryStore, Receiver, sign_body
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import NewDelivery, PutResult
from tests.helpers.doors import plain_asgi
from tests.helpers.raw import until
from tests.helpers.receiving import ReceiverProcess, locked, prepare, receiver_process, sending, stored
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register


class SlowStore(MemoryStore):
    """Puts when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.let = asyncio.Event()

    async def put(self, delivery: NewDelivery) -> PutResult:
        self.asked.set()
        await self.let.wait()
        return await super().put(delivery)


HasGone = Callable[[], bool]
"""Tells whether the server knows that its clients have gone."""


@asynccontextmanager
async def aiohttp_door(receiver: Receiver, *, handler_cancellation: bool) -> AsyncIterator[tuple[str, HasGone]]:
    """Serve with aiohttp, which cancels its handler then, or lets it go on."""
    app = web.Application()
    app.add_routes(webhook_routes(receiver))
    runner = web.AppRunner(app, access_log=None, handler_cancellation=handler_cancellation)
    await runner.setup()
    server = runner.server
    assert server is not None
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/asana"
        yield url, lambda: not (handler_cancellation and server.connections)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def asgi_door(receiver: Receiver) -> AsyncIterator[tuple[str, HasGone]]:
    """Serve with uvicorn, which lets an application go on."""
    async with plain_asgi(receiver) as url:
        yield url, lambda: True


DOORS: dict[str, Callable[[Receiver], AbstractAsyncContextManager[tuple[str, HasGone]]]] = {
    "aiohttp": partial(aiohttp_door, handler_cancellation=False),
    "aiohttp, cancelling": partial(aiohttp_door, handler_cancellation=True),
    "asgi": asgi_door,
}


PATIENT = {"timeout": 60}
"""What waits in a test waits for its end."""


async def post(url: str, content: bytes) -> int:
    """Deliver something; return the status."""
    async with aiohttp.ClientSession() as http:
        async with http.post(
            f"{url}/{ENDPOINT}", data=content, headers={"X-Hook-Signature": sign_body(content, secret=SECRET)}
        ) as response:
            return response.status


async def give_up(sending: "asyncio.Task[int]", has_gone: HasGone) -> None:
    """Close a client's connection, and wait until the server has seen it."""
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await until(has_gone)


@pytest.mark.parametrize("door", DOORS)
async def test_what_asana_gave_up_is_stored_once(door: str) -> None:
    """A client that goes away while the store writes interrupts nothing, and what it sends again is a duplicate."""
    content = body(event())
    async with SlowStore() as store:
        await register(store)
        receiver = Receiver(store)
        async with DOORS[door](receiver) as (url, has_gone):
            sending = asyncio.create_task(post(url, content))
            await store.asked.wait()
            await give_up(sending, has_gone)
            store.let.set()

            assert await post(url, content) == 200
            assert receiver.counts["duplicate"] == 1
        [lease] = await store.claim(9, lease=60)
        assert lease.body == content


@pytest.mark.long
async def test_senders_that_give_up_soon(tmp_path: Path) -> None:
    """All senders give up more than once while the database is locked, and afterwards each body is in it once."""
    path = tmp_path / "store.db"
    await prepare(path)
    async with receiver_process(path, store={"busy_timeout": 30}, receiver={"timeout": 30}) as receiver:
        async with sending(receiver.url, give_up_after=0.5, resend=True) as load:
            with locked(path):
                await load.until(lambda: load.broken >= 2 * load.senders)
            await load.acknowledge(100)
            await load.stop()
    found = stored(path)
    assert load.acknowledged <= set(found.bodies)
    assert len(found.bodies) == len(set(found.bodies))
    assert set(load.statuses) == {200}


async def overrun(receiver: ReceiverProcess, bodies: list[bytes], *, room: int, senders: int) -> None:
    """Deliver *bodies* while the database is locked: *room* of them wait, the others are refused at once.

    That costs the receiver neither time nor memory: what is refused meanwhile is so in under two seconds (a hundredth
    of that on an idle machine), and it grows by less than 20 MiB.
    """
    async with sending(receiver.url, senders=5) as load:
        await load.acknowledge(100)  # now everything is imported
        await load.stop()
    before = receiver.memory()
    with locked(receiver.path) as lock:
        async with sending(receiver.url, senders=senders, bodies=iter(bodies)) as load:
            await load.until(lambda: load.statuses[503] == len(bodies) - room)
            async with sending(receiver.url, senders=1, bodies=iter(bodies[:20])) as alone:
                await alone.finish()
            assert alone.statuses == {503: 20}
            assert alone.slowest[503] < 2.0
            assert receiver.memory() - before < 20 * 1024**2
            lock.execute("ROLLBACK")
            await load.finish()
            assert load.statuses == {503: len(bodies) - room, 200: room}


async def deliver_again(receiver: ReceiverProcess, bodies: list[bytes]) -> None:
    """Deliver everything until it is answered 200, as Asana does; then it is in the store, once."""
    async with sending(receiver.url, bodies=iter(bodies), resend=True) as load:
        await load.finish()
    assert load.statuses[200] == len(bodies)
    found = stored(receiver.path).bodies
    assert len(found) == len(set(found))
    assert set(bodies) <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "size", "room"),
    [({"max_pending": 20}, 0, 20), ({"max_body": 60_000, "max_pending_bytes": 525_000}, 50_000, 10)],
    ids=["deliveries", "bytes"],
)
async def test_more_than_may_wait(tmp_path: Path, limits: dict[str, int], size: int, room: int) -> None:
    """When the queue is full, by number or by bytes, all others are told so at once, and nothing is lost."""
    path = tmp_path / "store.db"
    await prepare(path)
    bodies = [body(event(note="x" * size)) for _ in range(100)]
    async with receiver_process(path, receiver=PATIENT | limits, store={"busy_timeout": 30}) as receiver:
        await overrun(receiver, bodies, room=room, senders=40)
        await deliver_again(receiver, bodies)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_burst_of_five_thousand(tmp_path: Path) -> None:
    """5,000 deliveries by 300 senders, and room for 100: that many wait, and the rest comes again."""
    path = tmp_path / "store.db"
    await prepare(path)
    bodies = [body(event()) for _ in range(5_000)]
    limits = PATIENT | {"max_pending": 100}
    async with receiver_process(path, receiver=limits, store={"busy_timeout": 60}) as receiver:
        await overrun(receiver, bodies, room=100, senders=300)
        await deliver_again(receiver, bodies)


@pytest.mark.slow
async def test_a_store_that_is_away(tmp_path: Path) -> None:
    """While every write fails each delivery is answered 503 soon, and once the store is back, it is stored."""
    path = tmp_path / "store.db"
    await prepare(path)
    bodies = [body(event()) for _ in range(60)]
    async with receiver_process(path, store={"busy_timeout": 0.01}) as receiver:
        with locked(path):
            async with sending(receiver.url, bodies=iter(bodies)) as load:
                await load.finish()
        assert load.statuses == {503: 60}
        assert load.slowest[503] < 4.0
        await deliver_again(receiver, bodies)
