"""The adapter for ASGI: one application to mount in FastAPI, Starlette, Quart or Litestar, or to run alone.

Establishing a webhook during an ASGI lifespan's startup cannot work: the port is not open yet, so Asana's handshake
cannot connect. Establish from a request handler, a task started later, or another process.

Servers show paths in their access logs, endpoints included. If others read these logs, turn them off
(``uvicorn --no-access-log``).

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from collections.abc import Awaitable, Callable, MutableMapping
from types import SimpleNamespace
from typing import Any, Final

from asana_webhooks.receiver.body import Chunks
from asana_webhooks.receiver.protocol import HookHeaders, Reply
from asana_webhooks.receiver.receiver import Receiver, check_receiver

__all__ = ["ReceiverApp"]

_FRAMING: Final = {b"content-length", b"transfer-encoding"}

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class ReceiverApp:
    """An ASGI application that passes requests to a `Receiver`.

    The last segment of the path is the endpoint, and one slash may follow it. What comes before does not matter:
    frameworks that mount an application disagree on whether ``path`` includes ``root_path``.

    In FastAPI and Starlette: ``app.mount("/asana", ReceiverApp(receiver))``. The ``public_url`` of `establish_webhook`
    must lead to that path.

    Args:
        receiver: handles the requests.
        health: also answer GET and HEAD of paths that end in ``/health`` with `Receiver.health`, for a load balancer.
            Anyone who reaches the application can read it.

    Raises:
        ConfigurationError: *receiver* is not a `Receiver`.
    """

    def __init__(self, receiver: Receiver, *, health: bool = True) -> None:
        check_receiver(receiver)
        self._receiver = receiver
        self._health = health

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request, or acknowledge the server's lifespan events."""
        kind = scope["type"]
        if kind == "lifespan":
            await _lifespan(receive, send)
        elif kind == "http":
            endpoint, body = _name_route(scope, self._receiver.receive), _Messages(receive)
            if scope["method"] == "POST":
                reply = await self._receiver.receive(endpoint, scope["headers"], body)
            else:
                reply = await self._answer_other(endpoint, scope, body)
            await _send_reply(send, scope, reply, is_read=body.is_over)
        elif kind == "websocket":
            _name_route(scope, self._receiver.receive)
            await send({"type": "websocket.close"})  # not accepted: the server answers 403
        else:
            raise ValueError(f"ReceiverApp handles HTTP only, not {kind!r}")

    async def _answer_other(self, endpoint: str, scope: _Message, body: "_Messages") -> Reply:
        reply = Reply(status=405, headers=((b"allow", b"POST"),), close=True)
        if self._health and scope["method"] in {"GET", "HEAD"} and endpoint == "health":
            reply = await self._receiver.health()
        await body.drop_rest(HookHeaders.of(scope["headers"]))
        return reply


def _name_route(scope: _Message, handler: Callable[..., object]) -> str:
    """Return the last segment of the path, and set what error trackers name a request by.

    Without these two, they name it by its path, which holds the endpoint.
    """
    last = str(scope["path"]).removesuffix("/").rpartition("/")[2]
    if "route" not in scope:
        shown = "health" if last == "health" else "{endpoint}"
        scope["route"] = SimpleNamespace(path=f"{scope.get('root_path', '')}/{shown}")
    scope.setdefault("endpoint", handler)
    return last


class _Messages(Chunks):
    """The chunks of a request's body, as the server sends them."""

    def __init__(self, receive: _Receive) -> None:
        super().__init__()
        self._receive = receive

    async def _next(self) -> bytes:
        if self.is_over:
            raise StopAsyncIteration
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the body was cut off")
        self.is_over = not message.get("more_body", False)
        chunk = bytes(message.get("body", b""))
        self.read += len(chunk)
        return chunk


async def _send_reply(send: _Send, scope: _Message, reply: Reply, *, is_read: bool) -> None:
    headers = [(b"content-length", b"%d" % len(reply.body))]
    if reply.headers:
        headers += [(name.lower(), value) for name, value in reply.headers]
    # Close if part of the body is unread: an endless one would hold the connection.
    must_close = reply.close or (not is_read and _has_body(scope))
    if must_close and scope.get("http_version", "1.1") < "2":  # HTTP/2 has no Connection header
        headers.append((b"connection", b"close"))
    body = b"" if scope["method"] == "HEAD" else reply.body
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    except OSError:
        pass  # the peer has disconnected


def _has_body(scope: _Message) -> bool:
    return [value for name, value in scope["headers"] if name in _FRAMING] not in ([], [b"0"])


async def _lifespan(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
