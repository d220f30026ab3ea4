"""Requests written byte by byte, whatever answer they get, and a look at what they have done to a receiver.

As a program, ``python -m tests.helpers.hostile FRONT OPTIONS``, it serves a `Site` on its own, so that its memory can
be measured: it prints the ``public_url`` and ends when its standard input does. OPTIONS is JSON: the receiver's.
"""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import http_parser, web, web_protocol
from aiohttp.http_exceptions import HttpProcessingError
from attrs import define, field, frozen

from asana_webhooks import MemoryStore, Receiver, Secret, sign_body
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import Registration, Store, registration_id
from asana_webhooks.testing import serve_receiver
from tests.helpers.doors import Door, plain_asgi, serve_app
from tests.helpers.receiving import ROOT, memory
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register

PENDING = "Pending_0123456789_abcdefghijklmnopqrstuvwx"
"""The endpoint of a webhook that is being created, and that no handshake has come for."""
FORGED = b"X-Hook-Signature: " + b"0" * 64
"""A header line that claims to prove anything."""
SHAKEN = b"X-Hook-Secret: c0ffee0d15ea5e0000badc0de0decade"
"""The header line of a handshake of the attacker's own, whose secret no other test knows."""
TIMEOUT = 20.0
"""Seconds after which a peer that gets no answer gives up, and the test with it."""


@asynccontextmanager
async def in_users_app(receiver: Receiver) -> AsyncIterator[str]:
    """Serve in an application of the user's own, whose runner decodes bodies as aiohttp does unless told otherwise."""
    app = web.Application()
    app.add_routes(webhook_routes(receiver))
    async with serve_app(app) as url:
        yield f"{url}/asana"


@asynccontextmanager
async def parsed_in_python(receiver: Receiver) -> AsyncIterator[str]:
    """Serve with the parser that aiohttp has where it could not be compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_protocol, "HttpRequestParser", http_parser.HttpRequestParserPy)
        async with serve_receiver(receiver) as url:
            yield url


FRONTS: dict[str, Door] = {
    "aiohttp": serve_receiver,
    "aiohttp in Python": parsed_in_python,
    "aiohttp of a user": in_users_app,
    "asgi": plain_asgi,
}
"""Every door, behind every parser and decoder that is found before it."""


@frozen(eq=False)
class Answer:
    """What came back, to the byte. Its repr shows nothing that may be secret."""

    raw: bytes = field(repr=False)

    @property
    def status(self) -> int:
        return int(self.raw[9:12])

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def undated(self) -> bytes:
        """All of it but the time, which says nothing about the request."""
        head, _, content = self.raw.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"date:")]
        return b"\r\n".join([*lines, b"", content])

    def echoes(self, secret: Secret) -> bool:
        lines = [line.partition(b": ") for line in self.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")]
        return [value for name, _, value in lines if name.lower() == b"x-hook-secret"] == [secret.reveal().encode()]


class Ear(asyncio.Protocol):
    """Hears a connection out. Unlike a stream it keeps what it has heard when the connection is reset."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.answered = asyncio.Event()
        """Something has come back."""
        self.over = asyncio.Event()
        """The server has closed the connection."""
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.mouth = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        self.answered.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.over.set()
        self._room.set()

    async def room(self) -> None:
        """Wait until the server has taken most of what was written, or has gone."""
        await asyncio.sleep(0)  # what it answers is heard even while it takes everything at once
        await self._room.wait()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Ear]:
    """Connect to the server of *url*; leave it at the end of the block."""
    host, _, port = urlsplit(url).netloc.partition(":")
    _, ear = await asyncio.get_running_loop().create_connection(Ear, host, int(port))
    try:
        yield ear
    finally:
        ear.mouth.abort()
        await ear.over.wait()


async def say(url: str, request: bytes) -> Answer:
    """Write *request* on a connection of its own, and return all that comes back until the server closes it."""
    async with connected(url) as ear, asyncio.timeout(TIMEOUT):
        ear.mouth.write(request)
        await ear.over.wait()
        return Answer(bytes(ear.heard))


def raw_request(
    *lines: bytes,
    content: bytes = b"",
    target: str = f"/asana/{ENDPOINT}",
    length: bool = True,
    start: bytes = b"POST %b HTTP/1.1",
    keep_alive: bool = False,
) -> bytes:
    """Return a request after which the server has to close the connection.

    Args:
        *lines: header lines as they are.
        content: what follows the head.
        target: where to, in the first line.
        length: whether a Content-Length says how long *content* is.
        start: the first line.
        keep_alive: whether it need not.
    """
    first = start.replace(b"%b", target.encode("latin-1"))
    framing = [b"Content-Length: %d" % len(content)] if length else []
    after = b"Connection: keep-alive" if keep_alive else b"Connection: close"
    return b"\r\n".join([first, b"Host: localhost", after, *framing, *lines, b"", content])


def signature(content: bytes) -> bytes:
    """Return the header line that proves *content*."""
    return b"X-Hook-Signature: " + sign_body(content, secret=SECRET).encode()


def delivery(
    *lines: bytes,
    content: bytes | None = None,
    target: str = f"/asana/{ENDPOINT}",
    start: bytes = b"POST %b HTTP/1.1",
) -> bytes:
    """Return the request of a true delivery, with more header lines."""
    content = body(event()) if content is None else content
    return raw_request(*lines, signature(content), content=content, target=target, start=start)


def chunked(content: bytes, *, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    """Return *content* as a body of one chunk and the last one."""
    return b"%x%b\r\n%b\r\n0\r\n%b\r\n" % (len(content), extension, content, trailer)


@frozen(kw_only=True)
class Site:
    """A receiver on a port, with the confirmed registration `ENDPOINT` and the pending one `PENDING`."""

    url: str
    store: Store
    log: pytest.LogCaptureFixture = field(repr=False)

    async def say(self, request: bytes) -> Answer:
        return await say(self.url, request)

    async def statuses(self, requests: dict[str, bytes]) -> dict[str, int]:
        """Say each of them on a connection of its own; return the status of each answer."""
        return {name: (await self.say(one)).status for name, one in requests.items()}

    async def taken(self) -> list[bytes]:
        """Return the bodies that are waiting to be handled, and take them."""
        return [lease.body for lease in await self.store.claim(1000, lease=3600)]

    async def assert_unharmed(self) -> None:
        """It is as it was in the beginning, nothing went wrong that it has not foreseen, and it serves on."""
        assert await self.taken() == []
        assert await self._candidates() == ()
        assert accidents(self.log.records) == []
        content = body(event())
        assert (await self.say(delivery(content=content))).status == 200
        assert await self.taken() == [content]

    async def _candidates(self) -> tuple[object, ...]:
        found = await self.store.find_registration(registration_id(PENDING))
        assert isinstance(found, Registration)
        return found.candidates


def accidents(records: Iterable[logging.LogRecord]) -> list[str]:
    """Describe what a log says of errors that nobody has foreseen: tracebacks, and errors of the servers.

    aiohttp's parser raises what it refuses as an exception, and its server logs that as an error. This is its way.
    """
    return [
        f"{record.name} {record.levelname}: {record.getMessage()}"
        for record in records
        if not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
        if record.exc_info
        or (record.levelno >= logging.ERROR and not record.name.startswith("asana_webhooks."))
        or (record.levelno >= logging.WARNING and record.name == "asyncio")
    ]


async def furnish(store: Store) -> None:
    """Give a store the two registrations of a `Site`."""
    await register(store)
    assert await store.open_registration(
        registration_id(PENDING), resource="9", public_url="https://example.com/asana", ttl=3600
    )


@asynccontextmanager
async def site(front: str, store: Store, log: pytest.LogCaptureFixture, **options: Any) -> AsyncIterator[Site]:
    """Serve a `Site` behind one of `FRONTS`; *options* are those of the receiver."""
    log.set_level(logging.DEBUG)
    await furnish(store)
    async with FRONTS[front](Receiver(store, **options)) as url:
        yield Site(url=url, store=store, log=log)


@define(eq=False)
class OwnProcess:
    """A site in a process of its own."""

    url: str
    pid: int

    def memory(self, what: str) -> int:
        return memory(self.pid, what)


@asynccontextmanager
async def own_process(front: str, **options: Any) -> AsyncIterator[OwnProcess]:
    """Serve a `Site` behind one of `FRONTS` in a process of its own, which has had one delivery already."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.helpers.hostile", front, json.dumps(options)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        assert (await say(url, delivery())).status == 200
        yield OwnProcess(url, process.pid)
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), TIMEOUT)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _serve(front: str, options: str) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with MemoryStore() as store:
        await furnish(store)
        async with FRONTS[front](Receiver(store, **json.loads(options))) as url:
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()
            await reader.read()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
