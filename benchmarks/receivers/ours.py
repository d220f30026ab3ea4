"""Ours, in front of a store: SQLite, or memory where no path is given."""

import asyncio
import socket
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import uvloop
from aiohttp import web

from asana_webhooks import MemoryStore, Receiver, Secret, SQLiteStore
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import Store, registration_id
from benchmarks.bodies import ENDPOINT, SECRET
from benchmarks.receivers.telling import telling

__all__ = ["on_aiohttp", "on_aiohttp_uvloop", "on_slow_disk", "opened"]

SLOW_SYNC: Final = 0.010
"""Seconds that a commit takes longer, where the disk is said to be slow."""


@asynccontextmanager
async def opened(path: str | None, pipe: Connection) -> AsyncIterator[Store]:
    """Open a store that knows the webhook; tell how many deliveries wait in it, and how late the loop is, if asked."""
    limits: dict[str, Any] = {"max_bytes": None}
    opened = MemoryStore(**limits) if path is None else SQLiteStore(path)
    async with opened as store:
        id = registration_id(ENDPOINT)
        await store.open(id, resource="1331", ttl=60)
        await store.offer(id, Secret(SECRET))
        await store.confirm(id, webhook_gid="43214", secret=Secret(SECRET))

        async def waiting() -> int:
            return (await store.health()).waiting

        with telling(pipe, waiting):
            yield store


async def _aiohttp_door(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    async with opened(path, pipe) as store:
        app = web.Application()
        app.add_routes(webhook_routes(Receiver(store)))
        runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        await asyncio.Event().wait()


def on_aiohttp(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    asyncio.run(_aiohttp_door(listening, pipe, path))


def on_aiohttp_uvloop(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    uvloop.run(_aiohttp_door(listening, pipe, path))


def on_slow_disk(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_SlowCommits))  # noqa: B010 - it has overloads
    on_aiohttp(listening, pipe, path)


class _SlowCommits(sqlite3.Connection):
    """A connection whose commits take as long as on a slow disk; the thread sleeps as it would there."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        cursor = super().execute(sql, *parameters)
        if sql == "COMMIT":
            time.sleep(SLOW_SYNC)
        return cursor
