"""aiohttp.web that puts deliveries into the SQLite queue of huey, a task queue; each commit waits for the disk.

The queue knows no duplicates: it takes the same delivery twice.
"""

import asyncio
import socket
from multiprocessing.connection import Connection

from aiohttp import web
from huey import SqliteHuey

from benchmarks.bodies import is_signed
from benchmarks.receivers.on_aiohttp import serve_handler


def _handle(body: bytes) -> None:
    """Do what a worker would do; here none runs."""


def serve(listening: socket.socket, pipe: Connection, path: str) -> None:
    """Look at the signature, enqueue a task, answer."""
    huey = SqliteHuey(filename=path, fsync=True)
    enqueue = huey.task()(_handle)

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        if not is_signed(body, request.headers["X-Hook-Signature"]):
            return web.Response(status=401)
        await asyncio.to_thread(enqueue, body)
        return web.Response()

    async def stored() -> int:
        return int(huey.pending_count())

    asyncio.run(serve_handler(receive, stored, listening, pipe))
