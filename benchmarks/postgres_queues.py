"""Queues in PostgreSQL, as their documentation shows them: how many jobs they take, one by one or in batches."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import Queries
from procrastinate import App, PsycopgConnector

from asana_webhooks.store.base import NewDelivery
from benchmarks.harness import Round
from benchmarks.postgres_server import POOL, empty, empty_pool
from benchmarks.stores import new_deliveries, put_all


@asynccontextmanager
async def _pgqueuer(url: str) -> AsyncIterator[tuple[Queries, Any]]:
    async with empty_pool(url) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))
        await queries.install()
        yield queries, pool


def _payload(new: NewDelivery) -> bytes:
    return f"{new.registration} {new.signature} ".encode() + new.body


def pgqueuer_each(url: str, count: int, waiting: int) -> Round:
    async def main() -> Round:
        async with _pgqueuer(url) as (queries, pool):

            async def put(new: NewDelivery) -> None:
                await queries.enqueue("deliveries", _payload(new))

            value, extras = await put_all(put, new_deliveries(count), waiting)
            return Round(value=value, extras=extras, work=await pool.fetchval("SELECT count(*) FROM pgqueuer"))

    return asyncio.run(main())


def pgqueuer_batches(url: str, count: int, waiting: int) -> Round:
    async def main() -> Round:
        async with _pgqueuer(url) as (queries, pool):

            async def put(some: Sequence[NewDelivery]) -> None:
                await queries.enqueue(["deliveries"] * len(some), list(map(_payload, some)), [0] * len(some))

            value, extras = await _put_batches(put, count, waiting)
            return Round(value=value, extras=extras, work=await pool.fetchval("SELECT count(*) FROM pgqueuer"))

    return asyncio.run(main())


@asynccontextmanager
async def _procrastinate(url: str) -> AsyncIterator[tuple[Any, Callable[[], Awaitable[object]]]]:
    """Yield a task, and what counts its jobs."""
    await empty(url)
    connector = PsycopgConnector(conninfo=url, **POOL)
    app = App(connector=connector)

    @app.task
    async def handle(**_: str) -> None:
        raise AssertionError("no worker runs")

    async def count() -> object:
        return (await connector.execute_query_one_async("SELECT count(*) AS jobs FROM procrastinate_jobs"))["jobs"]

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield handle, count


def _arguments(new: NewDelivery) -> dict[str, str]:
    return {"registration": new.registration, "signature": new.signature, "body": new.body.decode()}


def procrastinate_each(url: str, count: int, waiting: int) -> Round:
    async def main() -> Round:
        async with _procrastinate(url) as (handle, jobs):

            async def put(new: NewDelivery) -> None:
                await handle.defer_async(**_arguments(new))

            value, extras = await put_all(put, new_deliveries(count), waiting)
            return Round(value=value, extras=extras, work=await jobs())

    return asyncio.run(main())


def procrastinate_batches(url: str, count: int, waiting: int) -> Round:
    async def main() -> Round:
        async with _procrastinate(url) as (handle, jobs):

            async def put(some: Sequence[NewDelivery]) -> None:
                await handle.batch_defer_async(*map(_arguments, some))

            value, extras = await _put_batches(put, count, waiting)
            return Round(value=value, extras=extras, work=await jobs())

    return asyncio.run(main())


async def _put_batches(
    put: Callable[[Sequence[NewDelivery]], Awaitable[object]], count: int, size: int
) -> tuple[float, dict[str, float]]:
    """Put batches one after the other, as somebody would who has them all from the start."""
    new = new_deliveries(count)
    batches = [new[first : first + size] for first in range(0, count, size)]
    batches_a_second, extras = await put_all(put, batches, 1)
    return batches_a_second * count / len(batches), extras
