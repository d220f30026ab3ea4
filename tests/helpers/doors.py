"""A receiver behind each of the doors people use, on a real loopback port."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Literal

import fastapi
import starlette.applications
import starlette.routing
import uvicorn
from aiohttp import web

from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.testing.serving import serve_receiver

Door = Callable[[Receiver], AbstractAsyncContextManager[str]]


class _Server(uvicorn.Server):
    """Tells when it is ready, and leaves signals alone."""

    ready: asyncio.Event
    stopping: asyncio.Event

    async def main_loop(self) -> None:
        """Wait for the end; the original looks for it ten times a second."""
        await self.on_tick(0)
        await self.stopping.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_app(app: web.Application) -> AsyncIterator[str]:
    """Serve an aiohttp application; yields its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_asgi(
    app: Any, *, http: Literal["h11", "httptools"] = "h11", lifespan: Literal["on", "off"] = "on"
) -> AsyncIterator[str]:
    """Serve an ASGI application on uvicorn; yields its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = _Server(uvicorn.Config(app, http=http, log_config=None, access_log=False, lifespan=lifespan))
    server.ready, server.stopping = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(server.serve([listening]))
    try:
        await server.ready.wait()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.stopping.set()
        await serving
        listening.close()


@asynccontextmanager
async def plain_asgi(receiver: Receiver) -> AsyncIterator[str]:
    """Serve the ASGI app alone."""
    async with serve_asgi(ReceiverApp(receiver)) as url:
        yield f"{url}/asana"


@asynccontextmanager
async def in_fastapi(receiver: Receiver) -> AsyncIterator[str]:
    """Mount the ASGI app in FastAPI."""
    app = fastapi.FastAPI()
    app.mount("/hooks/asana", ReceiverApp(receiver))
    async with serve_asgi(app) as url:
        yield f"{url}/hooks/asana"


@asynccontextmanager
async def in_starlette(receiver: Receiver) -> AsyncIterator[str]:
    """Mount the ASGI app in Starlette."""
    mount = starlette.routing.Mount("/hooks/asana", app=ReceiverApp(receiver))
    async with serve_asgi(starlette.applications.Starlette(routes=[mount])) as url:
        yield f"{url}/hooks/asana"


DOORS: dict[str, Door] = {
    "aiohttp": serve_receiver,
    "asgi": plain_asgi,
    "fastapi": in_fastapi,
    "starlette": in_starlette,
}
