"""aiohttp.web as it is."""

import asyncio
import socket
from multiprocessing.connection import Connection

from aiohttp import web

from benchmarks.receivers.signed import is_signed
from benchmarks.receivers.telling import telling

__all__ = ["serve"]


def serve(listening: socket.socket, pipe: Connection) -> None:
    """aiohttp.web with one handler that looks at the signature and at nothing else."""

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(status=200 if is_signed(body, request.headers["X-Hook-Signature"]) else 401)

    async def nothing() -> int:
        return 0

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/asana/{endpoint}", receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        with telling(pipe, nothing):
            await asyncio.Event().wait()

    asyncio.run(main())
