"""`PostgresStore` beside code by hand, beside queues in PostgreSQL, beside `SQLiteStore`, and beside itself.

All use the same server, which waits for its disk at each commit. Each round begins with an empty database, but for
those of receivers, and those beside what is done. A round tells how fast the disk was just before it.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, cast

import asyncpg
from attrs import evolve

from asana_webhooks import PostgresStore, SQLiteStore, Store
from asana_webhooks.store.base import NewDelivery
from benchmarks.filled import KEPT, arriving, numbered_id
from benchmarks.harness import OURS, Case, Goal, Round
from benchmarks.load import send_deliveries
from benchmarks.postgres_queues import pgqueuer_batches, pgqueuer_each, procrastinate_batches, procrastinate_each
from benchmarks.postgres_server import benchmark_database, empty, empty_pool, run_sql, syncs_a_second
from benchmarks.processes import apart, server
from benchmarks.receivers import on_aiohttp
from benchmarks.receivers import ours as our_receivers
from benchmarks.receivers.telling import watched
from benchmarks.stores import finish, new_deliveries, put_all, register

TITLE: Final = "Putting deliveries of one event into PostgreSQL, working through them, and receiving"

SQLITE: Final = f"{OURS}, SQLiteStore"
EACH: Final = "asyncpg, a transaction each, 20 connections"
GROUPED: Final = "asyncpg, a bare insert for all that wait"
BARE: Final = "aiohttp.web, stores nothing"
BY_HAND: Final = "aiohttp.web, PostgreSQL by hand"
ONE_BY_ONE: Final = {"pgqueuer": pgqueuer_each, "procrastinate": procrastinate_each}
IN_BATCHES: Final = {"pgqueuer, batches": pgqueuer_batches, "procrastinate, batches": procrastinate_batches}
AT_ONCE: Final = 50
"""How many calls are under way at once, where nothing else is said."""
REGISTRATIONS: Final = 100
"""How many webhooks the claimed deliveries are of."""

TABLE: Final = """
    CREATE TABLE deliveries (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        registration text NOT NULL, signature text NOT NULL, body bytea NOT NULL
    )
"""
UNIQUE: Final = "CREATE UNIQUE INDEX keys ON deliveries (registration, signature)"
INSERT: Final = """
    INSERT INTO deliveries (registration, signature, body) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
"""
INSERT_MANY: Final = """
    INSERT INTO deliveries (registration, signature, body) SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[])
"""
DONE: Final = """
    INSERT INTO {schema}.seen (event_at, signature, registration, received_at)
    SELECT (at * 1000)::bigint, sha256(random()::text::bytea), 1, at
    FROM (
        SELECT extract(epoch FROM now())::float8 - {seconds} * (1 - n / {done}::float8) AS at
        FROM generate_series(1, {done}) AS n
    ) AS done
"""

logging.getLogger("asana_webhooks").setLevel(logging.ERROR)  # none of the stores has a secret_box


def ours(url: str, count: int, waiting: int) -> Round:
    async def main() -> Round:
        await empty(url)
        async with PostgresStore(url) as store:
            await register(store)
            value, extras = await put_all(store.put, new_deliveries(count), waiting)
            return Round(value=value, extras=extras, work=(await store.health()).waiting)

    return asyncio.run(main())


def sqlite(directory: str, count: int, waiting: int) -> Round:
    async def main() -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with SQLiteStore(f"{fresh}/store.db") as store:
                await register(store)
                value, extras = await put_all(store.put, new_deliveries(count), waiting)
                return Round(value=value, extras=extras, work=(await store.health()).waiting)

    return asyncio.run(main())


def each(url: str, count: int, waiting: int) -> Round:
    """Put as most would: a pool, and an insert that finds duplicates; it is prepared once for each connection."""

    async def main() -> Round:
        async with empty_pool(url) as pool:
            await run_sql(url, TABLE, UNIQUE)

            async def put(new: NewDelivery) -> None:
                await pool.execute(INSERT, new.registration, new.signature, new.body)

            value, extras = await put_all(put, new_deliveries(count), waiting)
            rows = await pool.fetchval("SELECT count(*) FROM deliveries")
            return Round(value=value, extras=extras, work=rows)

    return asyncio.run(main())


def grouped(url: str, count: int, waiting: int) -> Round:
    """Insert all that wait with one statement, which looks at nothing: neither at duplicates nor at registrations."""

    async def main() -> Round:
        await empty(url)
        await run_sql(url, TABLE)
        connection = await asyncpg.connect(url)
        gathered: list[tuple[NewDelivery, asyncio.Future[None]]] = []
        awake = asyncio.Event()

        async def insert() -> None:
            while await awake.wait():
                awake.clear()
                some = gathered.copy()
                gathered.clear()
                rows = [(new.registration, new.signature, new.body) for new, _ in some]
                await connection.execute(INSERT_MANY, *map(list, zip(*rows, strict=True)))
                for _, answer in some:
                    answer.set_result(None)

        async def put(new: NewDelivery) -> None:
            answer = asyncio.get_running_loop().create_future()
            gathered.append((new, answer))
            awake.set()
            await answer

        inserting = asyncio.create_task(insert())
        value, extras = await put_all(put, new_deliveries(count), waiting)
        inserting.cancel()
        rows = await connection.fetchval("SELECT count(*) FROM deliveries")
        await connection.close()
        return Round(value=value, extras=extras, work=rows)

    return asyncio.run(main())


def more(url: str, schema: str, count: int) -> Round:
    """Put into tables that stay."""

    async def main() -> Round:
        async with PostgresStore(url, schema=schema) as store:
            new = arriving(count, registrations=1)
            began = time.perf_counter()
            value, extras = await put_all(store.put, new, AT_ONCE)
            times = {"began": began, "ended": time.perf_counter()}
            return Round(value=value, extras=extras | times, work=count)

    return asyncio.run(main())


def together(url: str, schema: str, threads: Executor, receivers: Sequence[Callable[[], Round]]) -> Round:
    """Have receivers put at the same time, each in its process; leave nothing of that but a few keys."""
    done = list(threads.map(lambda receiver: receiver(), receivers))
    asyncio.run(run_sql(url, f"TRUNCATE {schema}.inbox"))
    began, ended = min(one.extras["began"] for one in done), max(one.extras["ended"] for one in done)
    count = sum(cast("int", one.work) for one in done)
    p99 = max(one.extras["p99 ms"] for one in done)
    return Round(value=count / (ended - began), extras={"p99 ms": p99}, work=count)


def claims(url: str, count: int, *, ordered: bool) -> Round:
    async def main() -> Round:
        await empty(url)
        async with PostgresStore(url) as store:
            return await _work_through(store, count, ordered=ordered)

    return asyncio.run(main())


def sqlite_claims(directory: str, count: int, *, ordered: bool) -> Round:
    async def main() -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with SQLiteStore(f"{fresh}/store.db") as store:
                return await _work_through(store, count, ordered=ordered)

    return asyncio.run(main())


async def _work_through(store: Store, count: int, *, ordered: bool) -> Round:
    await asyncio.gather(*(register(store, numbered_id(n), str(n)) for n in range(REGISTRATIONS)))
    await put_all(store.put, arriving(count, registrations=REGISTRATIONS), 500)
    finished, seconds = await finish(store, count, AT_ONCE, ordered=ordered)
    return Round(value=finished / seconds, work=finished)


def fill(url: str, schema: str, done: int) -> None:
    """Make a store's tables, with one registration and the keys of so many deliveries that are done."""

    async def make() -> None:
        async with PostgresStore(url, schema=schema) as store:
            await register(store, numbered_id(0))
        filled = DONE.format(schema=schema, done=done, seconds=KEPT)
        await run_sql(url, filled, f"VACUUM ANALYZE {schema}.seen", "CHECKPOINT")

    asyncio.run(make())


def cases(*, quick: bool, large: bool = False) -> Iterator[Case]:
    """Compare puts, then look at history, at two receivers, and at claims; *large*: a million in that history."""
    with ExitStack() as stack:
        url = stack.enter_context(benchmark_database())
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        threads = stack.enter_context(ThreadPoolExecutor(2))  # the processes they start end with them
        own = stack.enter_context(apart(quick))

        def case(name: str, competitors: dict[str, Callable[[], Round]], reference: str, **options: Any) -> Case:
            return Case(
                name=name,
                unit="deliveries a second",
                competitors={each: partial(_noting_the_disk, directory, run) for each, run in competitors.items()},
                reference=reference,
                more_is_better=True,
                **{"rounds": 5} | options,
            )

        for waiting, share, full in ((50, 4, 3_000), (500, 6, 6_000)):
            count = waiting if quick else full
            queues = ONE_BY_ONE | IN_BATCHES if waiting == AT_ONCE else IN_BATCHES  # more wait: the others do the same
            peers = {OURS: ours, EACH: each, GROUPED: grouped, **queues}
            competitors = {name: own(peer, url, count, waiting) for name, peer in peers.items()}
            competitors[SQLITE] = own(sqlite, directory, count, waiting)
            goals = [Goal(against=EACH, at_least=share), Goal(against=GROUPED, at_least=0.5)]
            goals += [Goal(against=SQLITE, at_least=0.5)] if waiting == AT_ONCE else []
            yield case(f"put, {waiting} waiting", competitors, EACH, goals=goals)

        def receivers(schema: str, *counts: int) -> Callable[[], Round]:
            return partial(together, url, schema, threads, [own(more, url, schema, count) for count in counts])

        count = 50 if quick else 6_000
        history: dict[str, Callable[[], Round]] = {}
        for amount in (1_000,) if quick else (1_000, 100_000, 1_000_000) if large else (1_000, 100_000):
            schema = f"beside_{amount}"
            fill(url, schema, amount)
            history[f"{amount:,} done"] = receivers(schema, count)
        first, *longer = history
        goals = [Goal(competitor=name, against=first, at_least=0.8) for name in longer]
        yield case("put beside deliveries that are done", history, first, goals=goals, is_series=True, rounds=9)
        one, two = "one receiver", "two receivers"
        both = {one: receivers("beside_1000", count), two: receivers("beside_1000", count // 2, count // 2)}
        goals = [Goal(competitor=two, against=one, at_least=1.2)]
        yield case(f"put, {AT_ONCE} waiting in each process", both, one, goals=goals, rounds=9)

        working = {
            f"{name}{', ordered' * ordered}": own(work, where, 50 if quick else 5_000, ordered=ordered)
            for ordered in (False, True)
            for name, work, where in ((OURS, claims, url), (SQLITE, sqlite_claims, directory))
        }
        yield case(f"claimed, {AT_ONCE} at once, and acknowledged", working, SQLITE)

        asyncio.run(empty(url))
        load = stack.enter_context(apart(quick, 1))
        doors = {
            BARE: stack.enter_context(server(on_aiohttp.serve, core=0)),
            BY_HAND: stack.enter_context(server(on_aiohttp.serve_with_postgres, url, core=0)),
            OURS: stack.enter_context(server(our_receivers.serve_with_postgres, url, core=0)),
        }
        for events in (1, 20):
            receiving = {
                name: watched(load(send_deliveries, port, events, 100 if quick else 1_200), pipe, keeps=name != BARE)
                for name, (port, pipe) in doors.items()
            }
            name = f"received, {events} event{'s' * (events > 1)}"
            yield case(name, receiving, BY_HAND, rounds=7)


def _noting_the_disk(directory: str, run: Callable[[], Round]) -> Round:
    syncs = syncs_a_second(directory)
    done = run()
    return evolve(done, extras={**done.extras, "fdatasync a second": syncs})
