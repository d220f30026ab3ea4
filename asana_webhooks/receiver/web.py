"""The adapter for aiohttp: routes that pass requests to a `Receiver`.

Establishing a webhook in ``on_startup`` cannot work: the port is not open yet, so Asana's handshake cannot connect.
Start the site first (``web.TCPSite(...).start()``), then establish; or establish from another process.

Bodies are read here, so the application's ``client_max_size`` does not limit deliveries. Encoded bodies are refused;
with ``web.AppRunner(app, auto_decompress=False)``, aiohttp does not decode them first. Its access log shows paths,
endpoints included: if others read it, set an ``access_log_format`` without ``%r``. Its logger ``aiohttp.server``
quotes requests that its parser rejects, endpoints included, at ERROR.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from asana_webhooks.receiver.protocol import Reply
from asana_webhooks.receiver.receiver import Receiver

__all__ = ["webhook_routes"]

_SHORT: Final = 64 * 1024
"""Bytes. A body up to this size that arrived with its headers is passed whole: 18 us faster, a quarter of a request."""


def webhook_routes(receiver: Receiver, path: str = "/asana", *, health: bool = False) -> list[web.RouteDef]:
    """Return the routes to add to an application: ``app.add_routes(webhook_routes(receiver))``.

    Args:
        receiver: handles the requests.
        path: the path before the endpoint; ``public_url`` of `establish_webhook` must end with it.
        health: also answer GET and HEAD of ``<path>/health`` with `Receiver.health`, for a load balancer. Anyone who
            reaches the path can read it.
    """

    async def answer_health(_: web.Request) -> web.StreamResponse:
        return _Response(await receiver.health())

    base = path.rstrip("/")
    routes = [web.post(f"{base}/{{endpoint}}", _handler(receiver))]
    return [*routes, web.get(f"{base}/health", answer_health)] if health else routes


def _handler(receiver: Receiver) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def receive(request: web.Request) -> web.StreamResponse:
        content = request.content
        endpoint, headers = request.match_info["endpoint"], request.raw_headers
        if _is_complete(content):
            return _Response(await receiver.receive(endpoint, headers, content.read_nowait()))
        async with aclosing(_chunks(content)) as body:
            response = _Response(await receiver.receive(endpoint, headers, body))
        if not content.is_eof():
            # Otherwise aiohttp reads the rest of the body for up to ten seconds.
            response.force_close()
            with suppress(ConnectionResetError):  # the peer may have disconnected
                await response.prepare(request)
                await response.write_eof()
            request.protocol.force_close()
        return response

    receive.__qualname__ = "webhook_routes.receive"  # error trackers show it
    return receive


def _is_complete(content: StreamReader) -> bool:
    return content.is_eof() and content.total_bytes <= _SHORT and content.exception() is None


async def _chunks(content: StreamReader) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in content.iter_any():
            yield chunk
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
