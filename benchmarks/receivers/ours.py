"""Ours, in front of SQLite, or of PostgreSQL."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import asyncpg
import uvloop
from aiohttp import web

from asana_webhooks import PostgresStore, Receiver, SQLiteStore
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.sqlite.file import sqlite3
from benchmarks.receivers.on_uvicorn import serve_app
from benchmarks.receivers.telling import telling
from benchmarks.stores import finish, register

SLOW_COMMIT: Final = 0.010
"""Seconds that a commit takes longer, where the disk is said to be slow."""


@asynccontextmanager
async def _receiver(path: str) -> AsyncIterator[tuple[Receiver, Callable[[], Awaitable[int]]]]:
    """Yield a receiver, and what tells how many deliveries wait in its store."""
    async with SQLiteStore(path) as store:
        await register(store)
        behind = sqlite3.connect(path)

        async def waiting() -> int:
            (count,) = behind.execute("SELECT count(*) FROM inbox").fetchone()
            return int(count)

        yield Receiver(store), waiting


def serve(listening: socket.socket, pipe: Connection, path: str) -> None:
    """Verify, store, answer; tell how many deliveries wait in the store."""

    async def main() -> None:
        async with _receiver(path) as (receiver, waiting):
            await _serve_routes(receiver, waiting, listening, pipe)

    asyncio.run(main())


def serve_and_finish(listening: socket.socket, pipe: Connection, path: str) -> None:
    """The same on a file that is filled; finish all that waits before telling how many deliveries are finished."""

    async def main() -> None:
        async with SQLiteStore(path) as store:
            count = 0

            async def finished() -> int:
                nonlocal count
                while waiting := (await store.health()).waiting:  # it counts up to 10,000
                    count += (await finish(store, waiting, 500))[0]
                return count

            await _serve_routes(Receiver(store), finished, listening, pipe)

    asyncio.run(main())


def serve_with_postgres(listening: socket.socket, pipe: Connection, url: str) -> None:
    """The same in front of PostgreSQL."""
    logging.getLogger("asana_webhooks").setLevel(logging.ERROR)  # the store has no secret_box

    async def main() -> None:
        async with PostgresStore(url) as store:
            await register(store)

            behind = await asyncpg.connect(url)

            async def waiting() -> int:
                return int(await behind.fetchval("SELECT count(*) FROM asana_webhooks.inbox"))

            await _serve_routes(Receiver(store), waiting, listening, pipe)

    asyncio.run(main())


async def _serve_routes(
    receiver: Receiver, stored: Callable[[], Awaitable[int]], listening: socket.socket, pipe: Connection
) -> None:
    app = web.Application()
    app.add_routes(webhook_routes(receiver))
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    telling(pipe, stored)
    await asyncio.Event().wait()


def serve_asgi(listening: socket.socket, pipe: Connection, path: str) -> None:
    """The same, as an ASGI application on uvicorn."""

    async def main() -> None:
        async with _receiver(path) as (receiver, waiting):
            await serve_app(ReceiverApp(receiver), waiting, listening, pipe)

    uvloop.run(main())


def serve_on_slow_disk(listening: socket.socket, pipe: Connection, path: str) -> None:
    """The same, where the thread that commits sleeps as it would with a slow disk."""
    setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_SlowCommits))  # noqa: B010 - it has overloads
    serve(listening, pipe, path)


class _SlowCommits(sqlite3.Connection):
    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        cursor = super().execute(sql, *parameters)
        if sql == "COMMIT":
            time.sleep(SLOW_COMMIT)
        return cursor
