"""The adapter for aiohttp: `serve` puts a `Receiver` on a port of its own, `webhook_routes` into an application.

Establishing a webhook in ``on_startup`` cannot work: the port is not open yet, so Asana's handshake cannot connect.
Establish inside the block of `serve`, or after ``web.TCPSite(...).start()``, or from another process.

Bodies are read here, so the application's ``client_max_size`` does not limit deliveries. Encoded bodies are refused;
with ``web.AppRunner(app, auto_decompress=False)``, aiohttp does not decode them first. Its access log shows paths,
endpoints included: if others read it, set an ``access_log_format`` without ``%r``. Its logger ``aiohttp.server``
quotes requests that its parser rejects, endpoints included, at ERROR.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.receiver.body import SHORT_BODY, IteratedChunks
from asana_webhooks.receiver.protocol import HookHeaders, Reply
from asana_webhooks.receiver.receiver import Receiver, check_receiver

__all__ = ["serve", "webhook_routes"]

_PATH: Final = re.compile(r"(/[\w.~!$&'()*+,;=:@%-]+)*/?", re.ASCII)

_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (they are replaced)


@asynccontextmanager
async def serve(
    receiver: Receiver, *, host: str = "127.0.0.1", port: int = 8080, path: str = "/asana", health: bool = True
) -> AsyncIterator[str]:
    """Serve *receiver* on a port of its own while the block runs, and close it at the end.

    Yields the local URL of *path*, such as ``http://127.0.0.1:8080/asana``; it is on the loopback address if *host*
    means all addresses. The port is open then, so the block can establish webhooks.

    At the end, also if the block raises or is cancelled, this awaits `Receiver.aclose`: requests in flight finish, and
    new ones are answered 503. Then the server closes, which may take 1 second. A closed receiver cannot be served
    again.

    Args:
        receiver: handles the requests.
        host: the name or address to listen on; ``"0.0.0.0"`` for all of IPv4, ``"::"`` for all of IPv6.
        port: the port to listen on; 0 for any free port.
        path: as for `webhook_routes`.
        health: as for `webhook_routes`.

    Raises:
        ConfigurationError: *receiver* is not a `Receiver`, *path* is invalid, or it cannot listen on *host* and *port*.
            The receiver stays open.
    """
    app = web.Application()
    app.add_routes(webhook_routes(receiver, path, health=health))
    # Signatures are checked over the raw bytes, so the server must not decompress them.
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await _listen(runner, host, port)
        address = runner.addresses[0]
        local = _LOOPBACK.get(address[0], address[0])
        try:
            yield f"http://{f'[{local}]' if ':' in local else local}:{address[1]}{path.rstrip('/')}"
        finally:
            await receiver.aclose()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: Any, port: Any) -> None:
    why: object = "host must be text, and port a number from 0 to 65535"
    if isinstance(host, str) and isinstance(port, int) and 0 <= port <= 65535:
        try:
            return await web.TCPSite(runner, host, port).start()
        except (OSError, ValueError) as problem:  # ValueError: a host that is no name
            why = getattr(problem, "strerror", None) or problem
    raise ConfigurationError(f"cannot listen on host {host!r}, port {port!r}: {why}")


def webhook_routes(receiver: Receiver, path: str = "/asana", *, health: bool = True) -> list[web.RouteDef]:
    """Return the routes to add to an application: ``app.add_routes(webhook_routes(receiver))``.

    Each is there with and without a slash at its end.

    Args:
        receiver: handles the requests.
        path: the path before the endpoint; ``public_url`` of `establish_webhook` must end with it.
        health: also answer GET and HEAD of ``<path>/health`` with `Receiver.health`, for a load balancer. Anyone who
            reaches the path can read it.

    Raises:
        ConfigurationError: *receiver* is not a `Receiver`; or *path* does not start with a slash, or contains more than
            a path, such as a query.
    """
    check_receiver(receiver)
    _check_path(path)

    async def answer_health(request: web.Request) -> web.StreamResponse:
        reply = await receiver.health()
        async with aclosing(_chunks(request.content)) as body:
            await IteratedChunks(body).drop_rest(HookHeaders.of(request.raw_headers))
        return await _respond(request, reply)

    base, answer = path.rstrip("/"), _handler(receiver)
    routes = [web.post(f"{base}/{{endpoint:[^/]+}}{slash}", answer) for slash in ("", "/")]
    if health:
        routes += [web.get(f"{base}/health{slash}", answer_health) for slash in ("", "/")]
    return routes


def _check_path(path: Any) -> None:
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ConfigurationError('path must look like "/asana": a slash first, and no query, braces or spaces')


def _handler(receiver: Receiver) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def receive(request: web.Request) -> web.StreamResponse:
        content = request.content
        endpoint, headers = request.match_info["endpoint"], request.raw_headers
        if _is_complete(content):
            return _Response(await receiver.receive(endpoint, headers, content.read_nowait()))
        async with aclosing(_chunks(content)) as body:
            reply = await receiver.receive(endpoint, headers, body)
        return await _respond(request, reply)

    receive.__qualname__ = "webhook_routes.receive"  # error trackers show it
    return receive


async def _respond(request: web.Request, reply: Reply) -> web.StreamResponse:
    response = _Response(reply)
    if not request.content.is_eof():
        # Otherwise aiohttp reads the rest of the body for up to ten seconds.
        response.force_close()
        with suppress(ConnectionResetError):  # the peer may have disconnected
            await response.prepare(request)
            await response.write_eof()
        request.protocol.force_close()
    return response


def _is_complete(content: StreamReader) -> bool:
    # Such a body is passed whole: 18 us faster, a quarter of a request.
    return content.is_eof() and content.total_bytes <= SHORT_BODY and content.exception() is None


async def _chunks(content: StreamReader) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in content.iter_any():
            yield chunk
            del chunk  # or it is kept while the next is awaited
    except (web.RequestPayloadError, HttpProcessingError):  # cut off, or malformed chunks
        raise ConnectionResetError("the body was cut off") from None


class _Response(web.Response):
    def __init__(self, reply: Reply) -> None:
        super().__init__(status=reply.status, body=reply.body)
        if reply.close:
            self.force_close()
        for name, value in reply.headers:
            self.headers.add(name.decode("latin-1"), value.decode("latin-1"))

    def __repr__(self) -> str:
        return f"<Response {self.status}>"  # aiohttp's repr shows the path
