"""Putting deliveries into a store, durably, with one or many waiting at a time.

A store's `put` returns when the delivery is on the disk. Their peers keep the same three columns: registration,
signature and body, none of them twice.
"""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

import aiosqlite
import redis.asyncio
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from asana_webhooks import Secret, SQLiteStore
from asana_webhooks.store.base import NewDelivery, registration_id
from benchmarks.bodies import ENDPOINT, SECRET, delivery, signature
from benchmarks.harness import OURS, Case, Goal, Round, Size, percentile
from benchmarks.processes import apart

__all__ = ["TITLE", "cases"]

TITLE: Final = "Putting deliveries of one event into a store, durably"

EACH: Final = "aiosqlite, a transaction each"
COMMIT: Final = "sqlite3, a commit each"
SYNC: Final = "append + fdatasync each"
REDIS: Final = "Redis Streams, appendfsync always"

ID: Final = registration_id(ENDPOINT)

TABLE: Final = """
    CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY, registration TEXT NOT NULL, signature TEXT NOT NULL, body BLOB NOT NULL,
        UNIQUE (registration, signature)
    )
"""
INSERT: Final = "INSERT INTO deliveries (registration, signature, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"

ADD_TO_STREAM: Final = """
    if redis.call("SET", KEYS[1], 1, "NX") then
        redis.call("XADD", "deliveries", "*", "registration", ARGV[1], "body", ARGV[2])
    end
"""

_Put = Callable[[NewDelivery], Awaitable[object]]


def _deliveries(count: int) -> list[NewDelivery]:
    bodies = (delivery(1, number) for number in range(count))
    return [NewDelivery(registration=ID, signature=signature(body), body=body) for body in bodies]


async def _put_all(put: _Put, count: int, waiting: int) -> tuple[float, dict[str, float]]:
    """Return deliveries a second and how long each took, with *waiting* on their way at any time."""
    left, latencies = iter(_deliveries(count)), list[float]()

    async def keep_putting() -> None:
        for one in left:
            began = time.perf_counter()
            await put(one)
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(keep_putting() for _ in range(waiting)))
    seconds = time.perf_counter() - began
    shares = {"p50 ms": 0.5, "p99 ms": 0.99}
    return count / seconds, {name: percentile(latencies, share) * 1e3 for name, share in shares.items()}


def ours(directory: str, count: int, waiting: int) -> Round:
    async def main() -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with SQLiteStore(f"{fresh}/store.db") as store:
                await store.open(ID, resource="1331", ttl=60)
                await store.offer(ID, Secret(SECRET))
                await store.confirm(ID, webhook_gid="43214", secret=Secret(SECRET))
                value, extras = await _put_all(store.put, count, waiting)
                return Round(value=value, extras=extras, work=(await store.health()).waiting)

    return asyncio.run(main())


def aiosqlite_each(directory: str, count: int, waiting: int) -> Round:
    """As its documentation shows it; the lock is there because one connection has one transaction at a time."""

    async def main() -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with aiosqlite.connect(f"{fresh}/peer.db") as db:
                await _prepare(db)
                lock = asyncio.Lock()

                async def put(new: NewDelivery) -> None:
                    async with lock:
                        await db.execute(INSERT, (new.registration, new.signature, new.body))
                        await db.commit()

                value, extras = await _put_all(put, count, waiting)
                return Round(value=value, extras=extras, work=await _rows(db))

    return asyncio.run(main())


def aiosqlite_autocommit(directory: str, count: int, waiting: int) -> Round:
    """The least it can do for a single statement: SQLite commits by itself."""

    async def main() -> Round:
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            async with aiosqlite.connect(f"{fresh}/peer.db", isolation_level=None) as db:
                await _prepare(db)

                async def put(new: NewDelivery) -> None:
                    await db.execute(INSERT, (new.registration, new.signature, new.body))

                value, extras = await _put_all(put, count, waiting)
                return Round(value=value, extras=extras, work=await _rows(db))

    return asyncio.run(main())


async def _prepare(db: aiosqlite.Connection) -> None:
    await db.execute("PRAGMA journal_mode = WAL")
    await db.execute("PRAGMA synchronous = FULL")
    await db.execute(TABLE)


async def _rows(db: aiosqlite.Connection) -> object:
    row = await (await db.execute("SELECT count(*) FROM deliveries")).fetchone()
    return row[0] if row else None


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

            value, extras = await _put_all(put, count, waiting)
            (rows,) = db.execute("SELECT count(*) FROM deliveries").fetchone()
            return Round(value=value, extras=extras, work=rows)

    return asyncio.run(main())


def sync_each(directory: str, count: int, waiting: int) -> Round:
    """The limit of the disk for those who do not share a wait."""

    async def main() -> Round:
        with tempfile.TemporaryFile(dir=directory) as file:
            written = 0

            async def put(new: NewDelivery) -> None:
                nonlocal written
                os.write(file.fileno(), new.body)
                os.fdatasync(file.fileno())
                written += 1

            value, extras = await _put_all(put, count, waiting)
            return Round(value=value, extras=extras, work=written)

    return asyncio.run(main())


def redis_streams(address: str, count: int, waiting: int) -> Round:
    """One stream; whoever waits at the same time shares a pipeline, and so a wait for the disk."""

    async def main() -> Round:
        async with redis.asyncio.Redis(unix_socket_path=address) as db:
            await db.flushall()
            value, extras = await _put_all(_Pipelined(db).put, count, waiting)
            return Round(value=value, extras=extras, work=await db.xlen("deliveries"))

    return asyncio.run(main())


class _Pipelined:
    """Sends what is asked for in one turn of the loop as one pipeline."""

    def __init__(self, db: redis.asyncio.Redis) -> None:
        self._db = db
        self._gathered: list[tuple[NewDelivery, asyncio.Future[None]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def put(self, new: NewDelivery) -> None:
        answer = asyncio.get_running_loop().create_future()
        self._gathered.append((new, answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        await answer

    async def _send(self) -> None:
        while self._gathered:
            batch, self._gathered = self._gathered, []
            pipeline = self._db.pipeline(transaction=False)
            for new, _ in batch:
                key = f"{new.registration}:{new.signature}"
                pipeline.eval(ADD_TO_STREAM, 1, key, new.registration, new.body)
            await pipeline.execute()
            for _, answer in batch:
                answer.set_result(None)
            await asyncio.sleep(0)  # those who were answered join the next one
        self._sending = None


@contextmanager
def _redis_server(directory: str) -> Iterator[str | None]:
    """Start a Redis server that writes every command to the disk before it answers; none if it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    address = f"{directory}/redis.sock"
    options = {"port": "0", "unixsocket": address, "dir": directory, "appendonly": "yes", "appendfsync": "always"}
    command = [program, *(word for name, value in options.items() for word in (f"--{name}", value)), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(unix_socket_path=address, retry=Retry(ConstantBackoff(0.1), 50)) as db:
            db.ping()
        yield address
    finally:
        process.terminate()
        process.wait()


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare with one, fifty and five hundred waiting."""
    with apart(size) as own, tempfile.TemporaryDirectory() as directory, _redis_server(directory) as redis_address:

        def compared() -> Iterator[Case]:
            for waiting, count in ((1, 300), (50, 4_000), (500, 5_000)):
                counted = size.of(count, quick=waiting)
                competitors: dict[str, Callable[[], Round]] = {
                    OURS: own(ours, directory, counted, waiting),
                    EACH: own(aiosqlite_each, directory, counted, waiting),
                    "aiosqlite, autocommit": own(aiosqlite_autocommit, directory, counted, waiting),
                    COMMIT: own(sqlite3_each, directory, counted, waiting),
                    SYNC: own(sync_each, directory, counted, waiting),
                }
                if redis_address is not None:
                    competitors[REDIS] = own(redis_streams, redis_address, counted, waiting)
                yield Case(
                    name=f"{waiting} waiting",
                    unit="deliveries a second",
                    competitors=competitors,
                    reference=EACH,
                    more_is_better=True,
                    rounds=9 if waiting == 1 else 5,
                    goals=_goals(waiting),
                )

        yield compared()


def _goals(waiting: int) -> list[Goal]:
    if waiting == 1:
        return [Goal(extra="p50 ms", against=COMMIT, at_most=1.5)]
    return [Goal(against=EACH, at_least=10)] if waiting == 50 else []
