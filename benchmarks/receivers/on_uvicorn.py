"""ASGI by hand, on uvicorn with httptools and uvloop, its quickest parts."""

import socket
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
import uvloop

from benchmarks.bodies import is_signed
from benchmarks.receivers.on_aiohttp import Table
from benchmarks.receivers.telling import telling


def serve_with_sqlite(listening: socket.socket, pipe: Connection, path: str) -> None:
    """Look at the signature, store the body in the table by hand, answer."""

    async def main() -> None:
        table = Table(path)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            signature = next(value for name, value in scope["headers"] if name == b"x-hook-signature").decode()
            if signed := is_signed(body, signature):
                await table.add((bytes.fromhex(signature), time.time(), body))
            headers = [(b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 200 if signed else 401, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        await serve_app(app, table.count, listening, pipe)

    uvloop.run(main())


async def serve_app(app: Any, stored: Callable[[], Awaitable[int]], listening: socket.socket, pipe: Connection) -> None:
    """Serve one ASGI application, until the process is ended."""
    config = uvicorn.Config(app, http="httptools", lifespan="off", access_log=False, log_config=None)
    telling(pipe, stored)
    await uvicorn.Server(config).serve([listening])
