"""A stand-in for Asana's API whose answers are ready before they are asked for, so that clients are what is measured.

It knows any webhook by its gid, and a list of 10,000 of them in pages of 100, whose offsets it hands out in turn.
"""

import asyncio
import re
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Final, cast

import uvloop

from asana_webhooks.client.requests import WEBHOOK_FIELDS
from asana_webhooks.client.transport import DEFAULT_HEADERS
from benchmarks.bodies import page, webhook_answer
from benchmarks.processes import listener, serving

PAGE: Final = 100
WORKSPACE: Final = "1331"
TOKEN: Final = "2/1331/7654:0123456789abcdef"
FIELDS: Final = ",".join(WEBHOOK_FIELDS)
HEADERS: Final = {**DEFAULT_HEADERS, "Authorization": f"Bearer {TOKEN}"}
"""With these a raw client sends the very bytes that ours sends."""

_GET: Final = re.compile(rb"GET /api/1.0/webhooks(?:/(\d+))?(?:\?(\S*))? HTTP/1.1\r\n")
_OFFSET: Final = re.compile(rb"offset=page-(\d+)")


@contextmanager
def serving_pages(pages: int, latency: float = 0.0) -> Iterator[str]:
    """Have a process answer, each time after *latency* seconds; yield the base URL of its API."""
    with closing(listener()) as listening, serving(_serve, listening, pages, latency, core=1) as pipe:
        pipe.recv()  # it is ready
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api/1.0"


def _serve(listening: socket.socket, pipe: Connection, pages: int, latency: float) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_server(partial(_Talk, _Answers(pages), latency), sock=listening)
        pipe.send(None)
        await asyncio.Event().wait()

    uvloop.run(main())


class _Answers:
    def __init__(self, pages: int) -> None:
        one = webhook_answer()
        self._before, self._gid, self._after = one.partition(b"1200000000000000")
        self._pages = [
            _framed(page(number * PAGE, PAGE, f"page-{number + 1}" if number + 1 < pages else None))
            for number in range(pages)
        ]

    def __call__(self, request: bytes) -> bytes:
        asked = _GET.match(request)
        assert asked is not None, request
        gid, query = asked.groups()
        if gid is not None:
            return _framed(self._before + gid + self._after)
        offset = _OFFSET.search(query)
        return self._pages[0 if offset is None else int(offset[1])]


def _framed(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Talk(asyncio.Protocol):
    """A connection. Its requests have no bodies, and come one at a time."""

    def __init__(self, answers: _Answers, latency: float) -> None:
        self._answers, self._latency = answers, latency
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._request += data
        if not self._request.endswith(b"\r\n\r\n"):
            return
        request, self._request = self._request, b""
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._answer, request)
        else:
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._answers(request))
