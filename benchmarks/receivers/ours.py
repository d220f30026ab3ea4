"""Ours, in front of SQLite."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import uvloop
from aiohttp import web

from asana_webhooks import Receiver, SQLiteStore
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.sqlite.file import sqlite3
from benchmarks.receivers.on_uvicorn import serve_app
from benchmarks.receivers.telling import telling
from benchmarks.stores import register

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
            app = web.Application()
            app.add_routes(webhook_routes(receiver))
            runner = web.AppRunner(app, access_log=None, auto_decompress=False)
            await runner.setup()
            await web.SockSite(runner, listening).start()
            telling(pipe, waiting)
            await asyncio.Event().wait()

    asyncio.run(main())


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
