"""HTTP on this machine: the fake's server, one for a receiver, and the client that posts to targets."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from http.client import responses
from ipaddress import ip_address
from typing import Any, Final, cast

import aiohttp
from aiohttp import web
from attrs import field, frozen
from yarl import URL

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.receiver.web import serve

__all__ = ["LoopbackServer", "RequestHandler", "TargetClient", "TargetResponse", "is_loopback", "serve_receiver"]

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


_MAX_ANSWER: Final = 4096
"""Bytes of a target's answer to keep for ``last_failure_content``."""


@frozen(kw_only=True)
class TargetResponse:
    """A target's answer, or the reason there is none."""

    status: int | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    text: str = ""
    failure: str | None = None
    late: bool = False
    """True if the target did not answer within the timeout."""
    seconds: float = 0.0
    """Seconds of real time until the answer or the failure."""

    @property
    def accepted(self) -> bool:
        """Whether Asana counts it as a success: only 200 and 204."""
        # https://developers.asana.com/docs/webhooks-guide
        return self.status in (200, 204)

    @property
    def content(self) -> str:
        """The text of ``last_failure_content``, such as ``500 Server Error`` followed by the body."""
        if self.status is None:
            return self.failure or ""
        phrase = "Server Error" if self.status == 500 else responses.get(self.status, "Unknown")
        return f"{self.status} {phrase}\n\n{self.text}"


def is_loopback(target: str) -> bool:
    """Return whether *target* is on this machine: 127.0.0.0/8, ::1 or localhost."""
    try:
        host = URL(target, encoded=True).host or ""
    except ValueError:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _beginning(response: aiohttp.ClientResponse) -> str:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= _MAX_ANSWER:
            break
    return body[:_MAX_ANSWER].decode(errors="replace")


class TargetClient:
    """Posts to targets on this machine. It never connects to any other target.

    Args:
        timeout: seconds of real time a target has for its whole answer.
    """

    def __init__(self, *, timeout: float) -> None:
        self.timeout = timeout
        self._http: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Create the HTTP session; needs a running event loop."""
        self._http = aiohttp.ClientSession(
            # A reused connection may be dead, and the delivery would fail because of the fake, not the target.
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Asana documents no User-Agent, so that receivers must not rely on one.
            skip_auto_headers=["User-Agent"],
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close the session."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def post(self, target: str, headers: Mapping[str, str], body: bytes) -> TargetResponse:
        """Send one request and return its answer, or the failure, as a `TargetResponse`."""
        started = time.monotonic()
        if self._http is None or not is_loopback(target):
            return TargetResponse(failure="The target could not be reached")
        try:
            async with (
                asyncio.timeout(self.timeout),
                self._http.post(
                    URL(target, encoded=True),  # send the URL exactly as given, including its query string
                    data=body,
                    headers={"Content-Type": "application/json", **headers},
                    allow_redirects=False,
                ) as response,
            ):
                text = await _beginning(response)
                seconds = time.monotonic() - started
                return TargetResponse(status=response.status, headers=response.headers, text=text, seconds=seconds)
        except TimeoutError:
            failure = f"The target did not answer within {self.timeout:g} seconds"
            return TargetResponse(failure=failure, late=True, seconds=time.monotonic() - started)
        except (aiohttp.ClientError, OSError, ValueError):
            return TargetResponse(failure="The target could not be reached", seconds=time.monotonic() - started)
