"""A load generator for receivers: signed deliveries over some connections, each sending as soon as it is answered."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, cast

import uvloop
from attrs import define, field

from benchmarks.bodies import ENDPOINT, delivery, signature
from benchmarks.harness import Round, percentile

CONNECTIONS: Final = 50
WARM_UP: Final = 200


def send_deliveries(port: int, events: int, count: int, rate: float = math.inf) -> Round:
    """Send *count* different deliveries of so many events each; return how many were answered a second.

    Each connection sends as soon as it has its answer, or, if there is a *rate*, so that all together send so many a
    second. No two calls send the same delivery. The work is how often each status was answered, some requests
    to warm up included.
    """
    body, now = delivery(events), time.time_ns() // 1000
    requests = [request(ENDPOINT, body, now + number) for number in range(WARM_UP + count)]
    return send_requests(port, requests, CONNECTIONS / rate)


def request(endpoint: str, body: bytes, number: int) -> bytes:
    """Return a request that delivers a body, with this *number* (as long as a gid of Asana's) as its first gid."""
    gid_at = body.index(b'"gid":"') + len(b'"gid":"')
    body = body[:gid_at] + b"%d" % number + body[body.index(b'"', gid_at) :]
    head = (
        f"POST /asana/{endpoint} HTTP/1.1\r\nHost: example.com\r\nX-Hook-Signature: {signature(body)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nAccept: */*\r\n\r\n"
    )
    return head.encode() + body


def send_requests(port: int, requests: Sequence[bytes], pause: float = 0) -> Round:
    """Send requests, each connection one every *pause* seconds; the first `WARM_UP` of them only warm up."""
    return uvloop.run(_send(port, requests, pause))


async def _send(port: int, requests: Sequence[bytes], pause: float) -> Round:
    statuses = Counter[int]()
    async with asyncio.timeout(60):  # a receiver that answers no more ends the benchmark
        await _send_all(port, requests[:WARM_UP], statuses, pause)
        began = time.perf_counter()
        latencies = await _send_all(port, requests[WARM_UP:], statuses, pause)
        seconds = time.perf_counter() - began
    return Round(
        value=len(latencies) / seconds,
        work=dict(statuses),
        extras={"p50 ms": percentile(latencies, 0.5) * 1e3, "p99 ms": percentile(latencies, 0.99) * 1e3},
    )


async def _send_all(port: int, requests: Sequence[bytes], statuses: Counter[int], pause: float) -> list[float]:
    """Return how many seconds each answer took."""
    left, latencies = iter(requests), list[float]()
    now = time.perf_counter()
    starts = [now + pause * number / CONNECTIONS for number in range(CONNECTIONS)]
    await asyncio.gather(*(_Connection(port, left, statuses, latencies, pause, due).run() for due in starts))
    return latencies


@define(eq=False, slots=False)
class _Connection(asyncio.Protocol):
    """Sends what is left, one request after the other; over a new connection if the server closes the old one.

    It notes the status of each answer (0: none came) and how long it took. The first request goes out when it is
    *due*, and each of the others *pause* seconds after the one before it was.
    """

    _port: int
    _left: Iterator[bytes]
    _statuses: Counter[int]
    _latencies: list[float]
    _pause: float
    _due: float
    _sent_at: float | None = None
    _answer: bytes = b""
    _is_over: bool = False
    _lost: asyncio.Event = field(factory=asyncio.Event)

    async def run(self) -> None:
        """Go on until nothing is left."""
        while not self._is_over:
            self._lost.clear()
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
            await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send_when_due()

    def _send_when_due(self) -> None:
        wait, self._due = self._due - time.perf_counter(), self._due + self._pause
        if self._pause and wait > 0:
            asyncio.get_running_loop().call_later(wait, self._send_next)
        else:
            self._send_next()

    def _send_next(self) -> None:
        request = next(self._left, None)
        if request is None:
            self._is_over = True
            self._transport.close()
        else:
            self._sent_at = time.perf_counter()
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head) or self._sent_at is None:
            return
        self._latencies.append(time.perf_counter() - self._sent_at)
        self._statuses[int(head[9:12])] += 1
        self._answer, self._sent_at = b"", None
        if b"\r\nconnection: close" in head.lower():
            self._transport.close()
        else:
            self._send_when_due()

    def connection_lost(self, _: Exception | None) -> None:
        if self._sent_at is not None:
            self._statuses[0] += 1
            self._answer, self._sent_at = b"", None
        self._lost.set()


def _length(head: bytes) -> int:
    _, _, after = head.lower().partition(b"\r\ncontent-length:")
    return int(after.partition(b"\r\n")[0] or b"0")
