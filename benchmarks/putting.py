"""Putting deliveries into a store, durably, with one or many waiting at a time; and working through them.

A store's `put` returns when the delivery is on the disk. Their peers keep the same three columns: registration,
signature and body, none of them twice.
"""

import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Thread
from typing import Final

import aiosqlite

from asana_webhooks import Delivery, SQLiteStore, Worker
from asana_webhooks.store.base import NewDelivery
from benchmarks.harness import OURS, Case, Goal, Round
from benchmarks.processes import apart
from benchmarks.stores import ID, new_deliveries, put_all, register

TITLE: Final = "Putting deliveries of one event into a store, and working through them"

EACH: Final = "aiosqlite, a transaction each"
COMMIT: Final = "sqlite3, a commit each"
HANDED: Final = "sqlite3, a commit each in a thread"
TOGETHER: Final = "sqlite3 by hand, one insert for all that wait"
AT_ONCE: Final = 100
"""How many deliveries the worker handles at a time."""

TABLE: Final = """
    CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY, registration TEXT NOT NULL, signature TEXT NOT NULL, body BLOB NOT NULL,
        UNIQUE (registration, signature)
    )
"""
REGISTRATION: Final = (
    "CREATE TABLE registrations (id TEXT PRIMARY KEY, state TEXT NOT NULL)",
    f"INSERT INTO registrations VALUES ('{ID}', 'confirmed')",
)
CONFIRMED: Final = """
    SELECT id FROM registrations WHERE state = 'confirmed' AND id IN (SELECT value FROM json_each(?))
"""
INSERT: Final = "INSERT INTO deliveries (registration, signature, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"


def ours(directory: str, count: int, waiting: int) -> Round:
    async def main() -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with SQLiteStore(f"{fresh}/store.db") as store:
                await register(store)
                value, extras = await put_all(store.put, new_deliveries(count), waiting)
                return Round(value=value, extras=extras, work=(await store.health()).waiting)

    return asyncio.run(main())


def aiosqlite_each(directory: str, count: int, waiting: int) -> Round:
    """As its documentation shows it; the lock is there because one connection has one transaction at a time."""

    async def main() -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with aiosqlite.connect(f"{fresh}/peer.db") as db:
                await db.execute("PRAGMA journal_mode = WAL")
                await db.execute("PRAGMA synchronous = FULL")
                await db.execute(TABLE)
                lock = asyncio.Lock()

                async def put(new: NewDelivery) -> None:
                    async with lock:
                        await db.execute(INSERT, (new.registration, new.signature, new.body))
                        await db.commit()

                value, extras = await put_all(put, new_deliveries(count), waiting)
                row = await (await db.execute("SELECT count(*) FROM deliveries")).fetchone()
                return Round(value=value, extras=extras, work=row and row[0])

    return asyncio.run(main())


def sqlite3_each(directory: str, count: int, waiting: int) -> Round:
    """What the disk and SQLite take, without event loop or threads; whoever waits blocks everything else."""

    async def main() -> Round:
        with (
            tempfile.TemporaryDirectory(dir=directory) as fresh,
            closing(sqlite3.connect(f"{fresh}/peer.db", isolation_level=None)) as db,
        ):
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(TABLE)

            async def put(new: NewDelivery) -> None:
                db.execute(INSERT, (new.registration, new.signature, new.body))

            value, extras = await put_all(put, new_deliveries(count), waiting)
            (rows,) = db.execute("SELECT count(*) FROM deliveries").fetchone()
            return Round(value=value, extras=extras, work=rows)

    return asyncio.run(main())


def sqlite3_handed(directory: str, count: int, waiting: int) -> Round:
    """What waking a thread, and then the event loop, adds to that: the least that does not block the loop."""

    async def main() -> Round:
        with (
            tempfile.TemporaryDirectory(dir=directory) as fresh,
            closing(sqlite3.connect(f"{fresh}/peer.db", isolation_level=None, check_same_thread=False)) as db,
        ):
            for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", TABLE):
                db.execute(statement)
            loop, queue = asyncio.get_running_loop(), SimpleQueue[tuple[NewDelivery, asyncio.Future[None]] | None]()

            def work() -> None:
                while job := queue.get():
                    new, stored = job
                    db.execute(INSERT, (new.registration, new.signature, new.body))
                    loop.call_soon_threadsafe(stored.set_result, None)

            async def put(new: NewDelivery) -> None:
                stored = loop.create_future()
                queue.put((new, stored))
                await stored

            thread = Thread(target=work)
            thread.start()
            try:
                value, extras = await put_all(put, new_deliveries(count), waiting)
            finally:
                queue.put(None)
                thread.join()
            (rows,) = db.execute("SELECT count(*) FROM deliveries").fetchone()
            return Round(value=value, extras=extras, work=rows)

    return asyncio.run(main())


def sqlite3_together(directory: str, count: int, waiting: int) -> Round:
    """What is checked here is checked there: that the registration is confirmed, and that the delivery is new."""

    async def main() -> Round:
        with (
            tempfile.TemporaryDirectory(dir=directory) as fresh,
            closing(sqlite3.connect(f"{fresh}/peer.db", isolation_level=None, check_same_thread=False)) as db,
            ThreadPoolExecutor(1) as thread,
        ):
            for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", TABLE, *REGISTRATION):
                db.execute(statement)
            loop, gathered = asyncio.get_running_loop(), list[tuple[NewDelivery, asyncio.Future[None]]]()
            busy = asyncio.Lock()

            def insert(new: list[NewDelivery]) -> None:
                db.execute("BEGIN IMMEDIATE")
                wanted = json.dumps([*{one.registration for one in new}])
                confirmed = {id for (id,) in db.execute(CONFIRMED, (wanted,))}
                rows = [(one.registration, one.signature, one.body) for one in new if one.registration in confirmed]
                for first in range(0, len(rows), 50):
                    some = rows[first : first + 50]
                    places = ", ".join(["(?, ?, ?)"] * len(some))
                    db.execute(INSERT.replace("(?, ?, ?)", places), [value for row in some for value in row])
                db.execute("COMMIT")

            async def write() -> None:
                async with busy:
                    batch = gathered.copy()
                    gathered.clear()
                    await loop.run_in_executor(thread, insert, [new for new, _ in batch])
                    for _, stored in batch:
                        stored.set_result(None)

            async def put(new: NewDelivery) -> None:
                stored = loop.create_future()
                gathered.append((new, stored))
                if len(gathered) == 1:
                    tasks.append(loop.create_task(write()))
                await stored

            tasks = list[asyncio.Task[None]]()
            value, extras = await put_all(put, new_deliveries(count), waiting)
            (rows,) = db.execute("SELECT count(*) FROM deliveries").fetchone()
            return Round(value=value, extras=extras, work=rows)

    return asyncio.run(main())


STARTED: Final = time.monotonic()
LATER: Final = datetime(2026, 2, 11, 17, tzinfo=UTC).timestamp()
"""When the deliveries come in: an hour after their events, or each would be logged as stale."""


def _clock() -> float:
    return LATER + time.monotonic() - STARTED


def drain(directory: str, count: int) -> Round:
    async def main() -> Round:
        handled = set[str]()

        async def handle(one: Delivery) -> None:
            handled.add(one.events[0].resource.gid)

        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with SQLiteStore(f"{fresh}/store.db", clock=_clock) as store:
                await register(store)
                new = new_deliveries(count)
                for first in range(0, count, 1_000):
                    await asyncio.gather(*map(store.put, new[first : first + 1_000]))
                async with Worker(store, handle, concurrency=AT_ONCE) as worker:
                    began = time.perf_counter()
                    await worker.drain()
                    seconds = time.perf_counter() - began
                assert (await store.health()).waiting == 0
                assert worker.counts["done"] == len(handled) == count
        return Round(value=count / seconds, work=len(handled))

    return asyncio.run(main())


def cases(*, quick: bool) -> Iterator[Case]:
    """Compare with one, fifty and 500 waiting, then look at a worker that claims, decodes, handles, acknowledges."""
    cheap = Goal(extra="CPU µs a put", against=TOGETHER, at_most=1.5)
    goals = {
        1: [Goal(extra="p50 ms", against=COMMIT, at_most=1.5)],
        50: [Goal(against=EACH, at_least=10), cheap],
        500: [cheap],
    }
    peers = {OURS: ours, EACH: aiosqlite_each, COMMIT: sqlite3_each, TOGETHER: sqlite3_together}
    with apart(quick) as own, tempfile.TemporaryDirectory() as directory:
        for waiting, full in ((1, 300), (50, 4_000), (500, 4_000)):
            count = waiting if quick else full
            floor = {HANDED: sqlite3_handed} if waiting == 1 else {}
            yield Case(
                name=f"{waiting} waiting",
                unit="deliveries a second",
                competitors={name: own(peer, directory, count, waiting) for name, peer in (peers | floor).items()},
                reference=EACH,
                more_is_better=True,
                rounds=9 if waiting == 1 else 5,
                goals=goals[waiting],
            )
        yield Case(
            name=f"a worker, {AT_ONCE} at once",
            unit="deliveries a second",
            competitors={OURS: own(drain, directory, 100 if quick else 20_000)},
            reference=OURS,
            more_is_better=True,
            rounds=5,
            goals=[Goal(at_least=10_000)],
        )
