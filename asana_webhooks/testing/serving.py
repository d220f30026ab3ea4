"""Servers on 127.0.0.1 for tests: the fake's, and one for a receiver."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, cast

from aiohttp import web

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.receiver.web import serve

__all__ = ["LoopbackServer", "RequestHandler", "serve_receiver"]

RequestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HOST: Final = "127.0.0.1"
_MAX_BODY: Final = 16 * 1024 * 1024


def serve_receiver(receiver: Receiver, *, port: int = 0) -> AbstractAsyncContextManager[str]:
    """Serve *receiver* over HTTP on 127.0.0.1 while the block runs, and yield its ``public_url``.

    This is `asana_webhooks.receiver.web.serve` on a free port. It closes the receiver at the end of the block.

    Args:
        receiver: answers the requests.
        port: the port to listen on; 0 for any free port.

    Raises:
        ConfigurationError: it cannot listen on the port.
    """
    return serve(receiver, host=_HOST, port=port)


class LoopbackServer:
    """A server on 127.0.0.1 that passes every request to one function.

    `aclose` cancels requests in flight and waits for them to end.

    Args:
        handle: answers a request.
        port: the port to listen on; 0 for any free port.
    """

    def __init__(self, handle: RequestHandler, *, port: int) -> None:
        self._handle = handle
        self._port = port
        self._runner: web.AppRunner | None = None
        self._handlers: set[asyncio.Task[Any]] = set()

    async def start(self) -> str:
        """Start listening, and return the URL of the server's root, without a trailing slash.

        Raises:
            ConfigurationError: it cannot listen on the port.
        """
        # A middleware gets every request. A route would not match paths with line breaks, nor ``OPTIONS *``.
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[self._track])
        # Asana does not document compressed bodies. Without decompression, a broken one is only an invalid body.
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
        """Stop listening and cancel every request in flight."""
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

    @web.middleware
    async def _track(self, request: web.Request, handler: RequestHandler) -> web.StreamResponse:  # noqa: ARG002
        # aiohttp lets a handler finish after its client disconnects. Track it, so that closing can cancel it.
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._handlers.add(task)
        try:
            return await self._handle(request)
        except ConnectionError:
            return web.Response()  # The client disconnected during its request; this is never sent.
        finally:
            self._handlers.discard(task)
