"""A scripted HTTP server on a raw socket: it answers what it is told, byte for byte, or breaks the connection."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from attrs import define, field, frozen


@frozen(kw_only=True)
class Seen:
    """A request the server got."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Step = bytes | Literal["reset", "close", "hang"] | Callable[[Seen], bytes]
"""An answer, something to do to the connection, or what makes an answer of the request."""


@define
class ScriptedServer:
    """Plays its steps, one for each request, whichever connection it comes on; the last one again and again."""

    steps: list[Step]
    port: int = 0
    requests: list[Seen] = field(factory=list)
    connections: int = 0
    got_request: asyncio.Event = field(factory=asyncio.Event)
    gone: asyncio.Event = field(factory=asyncio.Event)
    """Set when a peer has left while the server was hanging."""
    _writers: set[asyncio.StreamWriter] = field(factory=set)
    _left: asyncio.Event = field(factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/1.0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve_one(reader, writer):
                    pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self._left.set()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.requests.append(await _read_request(reader))
        self.got_request.set()
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if callable(step):
            step = step(self.requests[-1])
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
            return b"Content-Length" in step and b"Connection: close" not in step
        if step == "hang":
            await reader.read()
            self.gone.set()
        if step == "reset":
            closing_resets(writer)
        return False

    async def stop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        while self._writers:
            self._left.clear()
            await self._left.wait()


def closing_resets(writer: asyncio.StreamWriter) -> None:
    """Have the connection reset when it is closed: a socket that lingers for no time does that."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _read_request(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = urlsplit(target)
    return Seen(
        method=method,
        path=parts.path,
        query={name: values[0] for name, values in parse_qs(parts.query).items()},
        headers=headers,
        body=await reader.readexactly(int(headers.get("content-length", "0"))),
    )


@asynccontextmanager
async def scripted_server(*steps: Step) -> AsyncIterator[ScriptedServer]:
    """Serve *steps* on a free loopback port while the block runs."""
    scripted = ScriptedServer(list(steps))
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
        await scripted.stop()
        await server.wait_closed()


@asynccontextmanager
async def full_backlog() -> AsyncIterator[int]:
    """Yield a port on which connections are never taken."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for one in fillers:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(full.getsockname())
        yield full.getsockname()[1]
        for one in fillers:
            one.close()


def answer(
    status: int = 200,
    content: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    length: int | None = None,
    content_type: str = "application/json; charset=UTF-8",
) -> bytes:
    """Return an HTTP answer: *content* as JSON, or as it is when it is bytes; *length* lies about its
    length, and the connection is closed then.
    """
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [
        f"HTTP/1.1 {status} Whatever",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body) if length is None else length}",
        *(["Connection: close"] if length is not None else []),
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def errors(status: int, *messages: str, headers: Mapping[str, str] | None = None, phrase: str | None = None) -> bytes:
    """Return an error answer in Asana's envelope."""
    details = [{"message": message, "help": "Read the docs.", "phrase": phrase} for message in messages]
    return answer(status, {"errors": details}, headers=headers)
