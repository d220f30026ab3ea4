"""aiohttp.web by hand: as it is, and with a database, the least that stores a delivery once before it is answered.

There: one table, one unique key, one transaction for all that came while the last one ran. It knows one webhook for
ever, keeps no state of a delivery that a worker could go by, and cannot be stopped in order.
"""

import asyncio
import socket
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import asyncpg
from aiohttp import web

from benchmarks.bodies import is_signed
from benchmarks.receivers.telling import telling

_TABLE = "CREATE TABLE deliveries (id INTEGER PRIMARY KEY, signature BLOB UNIQUE, received_at REAL, body BLOB)"
_ADD = "INSERT OR IGNORE INTO deliveries (signature, received_at, body) VALUES (?, ?, ?)"
_POSTGRES_TABLE = """
    CREATE TABLE deliveries (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, signature bytea UNIQUE, received_at float8, body bytea
    )
"""
_POSTGRES_ADD = """
    INSERT INTO deliveries (signature, received_at, body)
    SELECT * FROM unnest($1::bytea[], $2::float8[], $3::bytea[]) ON CONFLICT DO NOTHING
"""
_COUNT = "SELECT count(*) FROM deliveries"

_Row = tuple[bytes, float, bytes]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(listening: socket.socket, pipe: Connection) -> None:
    """Look at the signature, and at nothing else."""

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(status=200 if is_signed(body, request.headers["X-Hook-Signature"]) else 401)

    async def nothing() -> int:
        return 0

    asyncio.run(serve_handler(receive, nothing, listening, pipe))


def serve_with_sqlite(listening: socket.socket, pipe: Connection, path: str) -> None:
    """Look at the signature, store the body, answer."""

    async def main() -> None:
        await _serve_table(Table(path), listening, pipe)

    asyncio.run(main())


def serve_with_postgres(listening: socket.socket, pipe: Connection, url: str) -> None:
    """The same with PostgreSQL."""

    async def main() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(_POSTGRES_TABLE)
        await _serve_table(_PostgresTable(connection), listening, pipe)

    asyncio.run(main())


async def _serve_table(table: "_Grouped", listening: socket.socket, pipe: Connection) -> None:
    async def receive(request: web.Request) -> web.Response:
        body, signature = await request.read(), request.headers["X-Hook-Signature"]
        if not is_signed(body, signature):
            return web.Response(status=401)
        await table.add((bytes.fromhex(signature), time.time(), body))
        return web.Response()

    await serve_handler(receive, table.count, listening, pipe)


async def serve_handler(
    receive: _Handler, stored: Callable[[], Awaitable[int]], listening: socket.socket, pipe: Connection
) -> None:
    """Serve one handler, until the process is ended."""
    app = web.Application()
    app.router.add_post("/asana/{endpoint}", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    telling(pipe, stored)
    await asyncio.Event().wait()


class _Grouped(ABC):
    """The one table: what all peers that store a delivery by hand have behind them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._gathered: list[tuple[_Row, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    def add(self, row: _Row) -> asyncio.Future[None]:
        """Return a future that is done when the row is on disk."""
        stored: asyncio.Future[None] = self._loop.create_future()
        self._gathered.append((row, stored))
        if self._writing is None:
            self._writing = self._loop.create_task(self._write_all())
        return stored

    async def _write_all(self) -> None:
        while self._gathered:
            batch, self._gathered = self._gathered, []
            await self._write([row for row, _ in batch])
            for _, stored in batch:
                if not stored.done():
                    stored.set_result(None)
            await asyncio.sleep(0)  # those who were answered join the next one
        self._writing = None

    @abstractmethod
    async def _write(self, rows: Sequence[_Row]) -> None:
        """Add rows in one transaction, those that are not known."""

    @abstractmethod
    async def count(self) -> int:
        """Return how many rows there are."""


class Table(_Grouped):
    """In SQLite."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(_TABLE)
        self._thread = ThreadPoolExecutor(1)

    async def _write(self, rows: Sequence[_Row]) -> None:
        await self._loop.run_in_executor(self._thread, self._insert, rows)

    def _insert(self, rows: Sequence[_Row]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_ADD, rows)
        self._connection.execute("COMMIT")

    async def count(self) -> int:
        """Ask in the same thread."""
        cursor = await self._loop.run_in_executor(self._thread, self._connection.execute, _COUNT)
        return int(cursor.fetchone()[0])


class _PostgresTable(_Grouped):
    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection = connection

    async def _write(self, rows: Sequence[_Row]) -> None:
        await self._connection.execute(_POSTGRES_ADD, *zip(*rows, strict=True))

    async def count(self) -> int:
        return int(await self._connection.fetchval(_COUNT))
