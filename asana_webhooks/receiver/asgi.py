"""The door for ASGI: one plain application that FastAPI, Starlette, Quart or Litestar mount, or a server runs alone.

Establishing a webhook inside an ASGI lifespan's start cannot work: the port is not open yet, so Asana's handshake
finds nobody. Establish from a request handler, a task started later, or another process.

Servers print paths in their access logs, endpoints included; switch those off (``uvicorn --no-access-log``) if others
read them.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from typing import Any, Final, Self

from asana_webhooks.receiver.protocol import Reply
from asana_webhooks.receiver.receiver import Receiver

__all__ = ["ReceiverApp"]

_FRAMING: Final = {b"content-length", b"transfer-encoding"}

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class ReceiverApp:
    """An ASGI application that hands requests to a `Receiver`; the last segment of the path is the endpoint.

    ``app.mount("/asana", ReceiverApp(receiver))`` in FastAPI and Starlette; ``public_url`` of `establish_webhook`
    must lead to the same place.

    Args:
        receiver: what answers.
        health: also answer GET and HEAD of paths that end in ``/health`` with `Receiver.health`, for a load balancer.
            Whoever reaches the application can read it.
    """

    def __init__(self, receiver: Receiver, *, health: bool = False) -> None:
        self._receiver = receiver
        self._health = health

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request, or go along with a server's lifespan."""
        kind = scope["type"]
        if kind == "lifespan":
            await _lifespan(receive, send)
        elif kind == "http":
            body = _Chunks(receive)
            await _send_reply(send, scope, await self._answer(scope, body), is_read=body.is_read)
        elif kind == "websocket":
            await send({"type": "websocket.close"})  # not accepted: the server answers 403
        else:
            raise ValueError(f"an Asana receiver speaks HTTP only, not {kind!r}")

    async def _answer(self, scope: _Message, body: "_Chunks") -> Reply:
        method, endpoint = scope["method"], str(scope["path"]).rpartition("/")[2]
        if method == "POST":
            return await self._receiver.receive(endpoint, scope["headers"], body)
        if self._health and method in {"GET", "HEAD"} and endpoint == "health":
            return await self._receiver.health()
        return Reply(status=405, headers=((b"allow", b"POST"),), close=True)


class _Chunks:
    """The chunks of a request's body, and whether they have been read to the end."""

    def __init__(self, receive: _Receive) -> None:
        self._receive = receive
        self.is_read = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self.is_read:
            raise StopAsyncIteration
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the body was cut off")
        self.is_read = not message.get("more_body", False)
        return bytes(message.get("body", b""))


async def _send_reply(send: _Send, scope: _Message, reply: Reply, *, is_read: bool) -> None:
    start = {"type": "http.response.start", "status": reply.status}
    with suppress(OSError):  # the peer has gone
        await send(start | {"headers": list(_response_headers(scope, reply, is_read=is_read))})
        body = b"" if scope["method"] == "HEAD" else reply.body
        await send({"type": "http.response.body", "body": body})


def _response_headers(scope: _Message, reply: Reply, *, is_read: bool) -> Iterator[tuple[bytes, bytes]]:
    yield b"content-length", str(len(reply.body)).encode()
    for name, value in reply.headers:
        yield name.lower(), value
    # There may be a body that nobody has read; what goes on for ever must not keep a connection.
    framing = [value for name, value in scope["headers"] if name in _FRAMING]
    is_more_to_come = not is_read and framing not in ([], [b"0"])
    is_old = scope.get("http_version", "1.1") < "2"  # HTTP/2 knows no such header
    if is_old and (reply.close or is_more_to_come):
        yield b"connection", b"close"


async def _lifespan(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
