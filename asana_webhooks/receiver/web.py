"""The door for aiohttp: routes that hand requests to a `Receiver`.

Establishing a webhook from ``on_startup`` cannot work: the port is not open yet, so Asana's handshake finds nobody.
Start the site first (``web.TCPSite(...).start()``), then establish; or establish from another process.

The body is read here, so the application's ``client_max_size`` does not cut off long deliveries. Encoded bodies are
refused; with ``web.AppRunner(app, auto_decompress=False)`` aiohttp does not even try to decode them. Its access log
prints paths, endpoints included; set an ``access_log_format`` without ``%r`` if others read it. Its logger
``aiohttp.server`` quotes requests that its parser refuses, endpoints included, at ERROR.
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
"""Bytes. A body so short that has come with its head is taken at once; that is 18 us faster, a quarter of a request."""


def webhook_routes(receiver: Receiver, path: str = "/asana", *, health: bool = False) -> list[web.RouteDef]:
    """Return the routes to add to an application: ``app.add_routes(webhook_routes(receiver))``.

    Args:
        receiver: what answers.
        path: the path before the endpoint; ``public_url`` of `establish_webhook` must end with it.
        health: also answer GET and HEAD of ``<path>/health`` with `Receiver.health`, for a load balancer. Whoever
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
        if _is_here(content):
            return _Response(await receiver.receive(endpoint, headers, content.read_nowait()))
        async with aclosing(_chunks(content)) as body:
            response = _Response(await receiver.receive(endpoint, headers, body))
        if not content.is_eof():
            # aiohttp would go on reading for ten seconds what the peer still sends.
            response.force_close()
            with suppress(ConnectionResetError):  # it may have gone already
                await response.prepare(request)
                await response.write_eof()
            request.protocol.force_close()
        return response

    return receive


def _is_here(content: StreamReader) -> bool:
    return content.is_eof() and content.total_bytes <= _SHORT and content.exception() is None


async def _chunks(content: StreamReader) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in content.iter_any():
            yield chunk
    except (web.RequestPayloadError, HttpProcessingError):  # chunks that make no sense
        raise ConnectionResetError("the body was cut off") from None


class _Response(web.Response):
    def __init__(self, reply: Reply) -> None:
        super().__init__(status=reply.status, body=reply.body)
        if reply.close:
            self.force_close()
        for name, value in reply.headers:
            self.headers.add(name.decode("latin-1"), value.decode("latin-1"))

    def __repr__(self) -> str:
        return f"<Response {self.status}>"  # aiohttp's own shows the path
