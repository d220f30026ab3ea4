"""Servers on 127.0.0.1: the fake's own, and a receiver's, for tests and trials."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from aiohttp import web

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.receiver.web import webhook_routes

__all__ = ["LoopbackServer", "RequestHandler", "serve_receiver"]

RequestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HOST: Final = "127.0.0.1"
_MAX_BODY: Final = 16 * 1024 * 1024


@asynccontextmanager
async def serve_receiver(receiver: Receiver, *, port: int = 0) -> AsyncIterator[str]:
    """Serve *receiver* over HTTP on 127.0.0.1 while the block runs; yields its ``public_url``.

    Args:
        receiver: what answers.
        port: the port to listen on; 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    app = web.Application()
    app.add_routes(webhook_routes(receiver, path="/asana"))
    # Signatures are checked over raw bytes, so nothing may decode them on the way.
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, _HOST, port).start()
        yield f"http://{_HOST}:{runner.addresses[0][1]}/asana"
    finally:
        await runner.cleanup()


class LoopbackServer:
    """A server on 127.0.0.1 that hands every request to one function.

    Once it is closed it is gone without a trace, whatever its requests wait for.

    Args:
        handle: answers a request.
        port: where to listen; 0 for any free port.
    """

    def __init__(self, handle: RequestHandler, *, port: int) -> None:
        self._handle = handle
        self._port = port
        self._runner: web.AppRunner | None = None
        self._handlers: set[asyncio.Task[Any]] = set()

    async def start(self) -> str:
        """Listen, and return the URL of the server's root, without a slash.

        Raises:
            ConfigurationError: the port cannot be had.
        """
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._track)
        # Nobody says that Asana takes compressed bodies; without inflating, a broken one is a body like any other.
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0, auto_decompress=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, _HOST, self._port).start()
        except (OSError, OverflowError) as problem:
            await runner.cleanup()
            why = os.strerror(problem.errno) if isinstance(problem, OSError) and problem.errno else problem
            raise ConfigurationError(f"the fake cannot listen on {_HOST}:{self._port}: {why}") from None
        self._runner = runner
        return f"http://{_HOST}:{runner.addresses[0][1]}"

    async def aclose(self) -> None:
        """Stop listening and cut off every request under way."""
        if self._runner is None:
            return
        for site in list(self._runner.sites):
            await site.stop()
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await self._runner.cleanup()
        self._runner = None

    async def _track(self, request: web.Request) -> web.StreamResponse:
        # aiohttp runs each handler to its end even if the client has gone; closing must not wait for that.
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._handlers.add(task)
        try:
            return await self._handle(request)
        except ConnectionError:
            return web.Response()  # The client has gone in the middle of its request; nobody gets this.
        finally:
            self._handlers.discard(task)
