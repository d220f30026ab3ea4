"""The door for ASGI: one plain application that FastAPI, Starlette, Quart or Litestar mount, or a server runs alone.

Establishing a webhook inside an ASGI lifespan's start cannot work: the port is not open yet, so Asana's handshake
finds nobody. Establish from a request handler, a task started later, or another process.

Servers print paths in their access logs, endpoints included; switch those off (``uvicorn --no-access-log``) if others
read them.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from asana_webhooks.receiver.receiver import Receiver, Reply

__all__ = ["ReceiverApp"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class ReceiverApp:
    """An ASGI application that hands requests to a `Receiver`; the last segment of the path is the endpoint.

    ``app.mount("/asana", ReceiverApp(receiver))`` in FastAPI and Starlette; ``public_url`` of `establish_webhook`
    must lead to the same place.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request, or go along with a server's lifespan."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] != "http":
            raise ValueError(f"an Asana receiver speaks HTTP only, not {scope['type']!r}")
        elif scope["method"] != "POST":
            await _reply(scope, send, Reply(status=405, headers=((b"allow", b"POST"),), close=True))
        else:
            endpoint = scope["path"].rpartition("/")[2]
            async with aclosing(_chunks(receive)) as body:
                reply = await self._receiver.receive(endpoint, scope["headers"], body)
            await _reply(scope, send, reply)


async def _chunks(receive: _Receive) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the body was cut off")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _reply(scope: _Message, send: _Send, reply: Reply) -> None:
    length = str(len(reply.body)).encode()
    headers = [(b"content-length", length), *((name.lower(), value) for name, value in reply.headers)]
    if reply.close and scope.get("http_version", "1.1") < "2":  # HTTP/2 knows no such header
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


async def _lifespan(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
