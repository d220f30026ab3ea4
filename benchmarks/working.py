"""Working through stored deliveries: claim, decode, handle, acknowledge.

The limit is an `asyncio.Queue` in memory with as many consumers, which decode the same bytes and lose everything when
the process ends.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from asana_webhooks import Delivery, MemoryStore, Secret, SQLiteStore, Worker
from asana_webhooks.store.base import NewDelivery, Store, registration_id
from asana_webhooks.wire import decode_events
from benchmarks.bodies import ENDPOINT, SECRET, delivery, signature
from benchmarks.harness import OURS, Case, Goal, Round, Size
from benchmarks.processes import apart

__all__ = ["TITLE", "cases"]

TITLE: Final = "Working through stored deliveries of one event"

QUEUE: Final = "asyncio.Queue, in memory"

ID: Final = registration_id(ENDPOINT)
STARTED: Final = time.monotonic()
LATER: Final = datetime(2026, 2, 11, 17, tzinfo=UTC).timestamp()
"""When the deliveries come in: an hour after their events, or each would be logged as stale."""


def _clock() -> float:
    return LATER + time.monotonic() - STARTED


async def _fill(store: Store, count: int) -> None:
    await store.open(ID, resource="1331", ttl=60)
    await store.offer(ID, Secret(SECRET))
    await store.confirm(ID, webhook_gid="43214", secret=Secret(SECRET))
    bodies = (delivery(1, number) for number in range(count))
    new = [NewDelivery(registration=ID, signature=signature(body), body=body) for body in bodies]
    for first in range(0, count, 1_000):
        await asyncio.gather(*map(store.put, new[first : first + 1_000]))


async def _drain(store: Store, count: int, concurrency: int) -> Round:
    await _fill(store, count)
    handled = set[str]()

    async def handle(one: Delivery) -> None:
        handled.add(one.events[0].resource.gid)

    async with Worker(store, handle, concurrency=concurrency) as worker:
        began = time.perf_counter()
        await worker.drain()
        seconds = time.perf_counter() - began
    assert (await store.health()).waiting == 0
    return Round(value=count / seconds, work=(worker.counts["done"], len(handled)))


def on_sqlite(directory: str, count: int, concurrency: int) -> Round:
    async def main() -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with SQLiteStore(f"{fresh}/store.db", clock=_clock) as store:
                return await _drain(store, count, concurrency)

    return asyncio.run(main())


def in_memory(count: int, concurrency: int) -> Round:
    async def main() -> Round:
        async with MemoryStore(max_bytes=None, clock=_clock) as store:
            return await _drain(store, count, concurrency)

    return asyncio.run(main())


def queue(count: int, concurrency: int) -> Round:
    async def main() -> Round:
        waiting, handled, done = asyncio.Queue[bytes](), set[str](), 0
        for number in range(count):
            waiting.put_nowait(delivery(1, number))

        async def consume() -> None:
            nonlocal done
            while True:
                events = decode_events(await waiting.get())
                handled.add(events[0].resource.gid)
                done += 1
                waiting.task_done()

        began = time.perf_counter()
        consumers = [asyncio.create_task(consume()) for _ in range(concurrency)]
        await waiting.join()
        seconds = time.perf_counter() - began
        for one in consumers:
            one.cancel()
        await asyncio.wait(consumers)
        return Round(value=count / seconds, work=(done, len(handled)))

    return asyncio.run(main())


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare workers of different width."""
    with apart(size) as own, tempfile.TemporaryDirectory() as directory:

        def compared() -> Iterator[Case]:
            for concurrency, full in ((8, 4_000), (100, 20_000)):
                count = size.of(full, quick=100)
                yield Case(
                    name=f"{concurrency} at once",
                    unit="deliveries a second",
                    competitors={
                        OURS: own(on_sqlite, directory, count, concurrency),
                        f"{OURS}, in memory": own(in_memory, count, concurrency),
                        QUEUE: own(queue, count, concurrency),
                    },
                    reference=QUEUE,
                    more_is_better=True,
                    rounds=5,
                    goals=[Goal(at_least=10_000)] if concurrency == 100 else [],
                )

        yield compared()
