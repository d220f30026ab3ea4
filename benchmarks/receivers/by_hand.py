"""aiohttp.web and SQLite by hand: the least that stores a delivery once, on disk, before it is answered.

One table, one unique key, one transaction for all that came in a turn of the loop. It knows one webhook for ever, keeps
no state of a delivery that a worker could go by, and cannot be stopped in order.
"""

import asyncio
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from aiohttp import web

from benchmarks.receivers.signed import is_signed
from benchmarks.receivers.telling import telling

__all__ = ["serve"]

_TABLE = "CREATE TABLE deliveries (id INTEGER PRIMARY KEY, signature BLOB UNIQUE, received_at REAL, body BLOB)"
_ADD = "INSERT OR IGNORE INTO deliveries (signature, received_at, body) VALUES (?, ?, ?)"

_Row = tuple[bytes, float, bytes]


class _Table:
    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(_TABLE)
        self._thread = ThreadPoolExecutor(1)
        self._loop = asyncio.get_running_loop()
        self._gathered: list[tuple[_Row, asyncio.Future[None]]] = []
        self._busy = False

    def add(self, row: _Row) -> asyncio.Future[None]:
        """Return a future that is done when the row is on disk."""
        stored: asyncio.Future[None] = self._loop.create_future()
        self._gathered.append((row, stored))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._start)
        return stored

    async def count(self) -> int:
        """Return how many rows there are."""
        ((rows,),) = await self._loop.run_in_executor(self._thread, self._fetch, "SELECT count(*) FROM deliveries")
        return int(rows)

    def _fetch(self, query: str) -> list[tuple[int]]:
        return self._connection.execute(query).fetchall()

    def _start(self) -> None:
        batch, self._gathered = self._gathered, []
        self._thread.submit(self._write, batch)

    def _write(self, batch: list[tuple[_Row, asyncio.Future[None]]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_ADD, [row for row, _ in batch])
        self._connection.execute("COMMIT")
        self._loop.call_soon_threadsafe(self._deliver, batch)

    def _deliver(self, batch: list[tuple[_Row, asyncio.Future[None]]]) -> None:
        for _, stored in batch:
            if not stored.done():
                stored.set_result(None)
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._gathered:
            self._start()
        else:
            self._busy = False


def serve(listening: socket.socket, pipe: Connection, path: str) -> None:
    """Look at the signature, store the body, answer."""

    async def main() -> None:
        table = _Table(path)

        async def receive(request: web.Request) -> web.Response:
            body, signature = await request.read(), request.headers["X-Hook-Signature"]
            if not is_signed(body, signature):
                return web.Response(status=401)
            await table.add((bytes.fromhex(signature), time.time(), body))
            return web.Response()

        app = web.Application()
        app.router.add_post("/asana/{endpoint}", receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        with telling(pipe, table.count):
            await asyncio.Event().wait()

    asyncio.run(main())
