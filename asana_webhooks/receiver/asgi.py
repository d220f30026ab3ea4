"""The door for ASGI: one plain application that FastAPI, Starlette, Quart or Litestar mount, or a server runs alone.

Establishing a webhook inside an ASGI lifespan's start cannot work: the port is not open yet, so Asana's handshake
finds nobody. Establish from a request handler, a task started later, or another process.

Servers print paths in their access logs, endpoints included; switch those off (``uvicorn --no-access-log``) if others
read them.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import aclosing, suppress
from typing import Any, Final

from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.receiver.reply import Reply

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
        exchange = _Exchange(scope, receive, send)
        del scope  # endpoint and secret are in it, and error trackers show the locals of a frame
        await exchange.run(self._receiver, health=self._health)


class _Exchange:
    """One call of the application. Its repr shows nothing of the scope."""

    def __init__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_read = False
        """Whether the body has been read to its end."""

    async def run(self, receiver: Receiver, *, health: bool) -> None:
        """Do what the scope asks for."""
        kind = self._scope["type"]
        if kind == "lifespan":
            await self._lifespan()
        elif kind == "http":
            await self._reply(await self._answer(receiver, health=health))
        elif kind == "websocket":
            await self._send({"type": "websocket.close"})  # not accepted: the server answers 403
        else:
            raise ValueError(f"an Asana receiver speaks HTTP only, not {kind!r}")

    async def _answer(self, receiver: Receiver, *, health: bool) -> Reply:
        method = self._scope["method"]
        if method == "POST":
            async with aclosing(self._chunks()) as body:
                return await receiver.receive(self._last_segment(), self._scope["headers"], body)
        if health and method in {"GET", "HEAD"} and self._last_segment() == "health":
            return await receiver.health()
        return Reply(status=405, headers=((b"allow", b"POST"),), close=True)

    def _last_segment(self) -> str:
        return str(self._scope["path"]).rpartition("/")[2]

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the body was cut off")
            more = message.get("more_body", False)
            self._is_read = not more
            yield message.get("body", b"")

    async def _reply(self, reply: Reply) -> None:
        start = {"type": "http.response.start", "status": reply.status}
        with suppress(OSError):  # the peer has gone
            await self._send(start | {"headers": list(self._headers(reply))})
            body = b"" if self._scope["method"] == "HEAD" else reply.body
            await self._send({"type": "http.response.body", "body": body})

    def _headers(self, reply: Reply) -> Iterator[tuple[bytes, bytes]]:
        yield b"content-length", str(len(reply.body)).encode()
        for name, value in reply.headers:
            yield name.lower(), value
        is_old = self._scope.get("http_version", "1.1") < "2"  # HTTP/2 knows no such header
        if is_old and (reply.close or self._is_more_to_come()):
            yield b"connection", b"close"

    def _is_more_to_come(self) -> bool:
        """Tell whether there may be a body that nobody has read; what goes on for ever must not keep a connection."""
        framing = [value for name, value in self._scope["headers"] if name in _FRAMING]
        return not self._is_read and framing not in ([], [b"0"])

    async def _lifespan(self) -> None:
        while True:
            message = await self._receive()
            await self._send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
