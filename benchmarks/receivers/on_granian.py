"""Granian by hand, over its own interface: its HTTP is in Rust, in a thread of its own."""

import asyncio
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from granian.server.embed import Server

from benchmarks.bodies import is_signed
from benchmarks.receivers.on_aiohttp import Table
from benchmarks.receivers.telling import telling


def serve_with_sqlite(listening: socket.socket, pipe: Connection, path: str) -> None:
    """Look at the signature, store the body in the table by hand, answer."""

    async def main() -> None:
        table = Table(path)

        async def app(scope: Any, protocol: Any) -> None:
            body, signature = await protocol(), scope.headers["x-hook-signature"]
            if signed := is_signed(body, signature):
                await table.add((bytes.fromhex(signature), time.time(), body))
            protocol.response_empty(200 if signed else 401, [])

        port = listening.getsockname()[1]
        listening.close()  # it wants a socket of its own
        serving = asyncio.create_task(Server(app, port=port, log_enabled=False).serve())
        telling(pipe, table.count)
        await serving

    uvloop.run(main())
