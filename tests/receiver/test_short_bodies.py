"""The rest of a short body is read before the answer: servers and proxies may drop a connection answered earlier."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asana_webhooks import MemoryStore, Receiver
from tests.helpers.doors import DOORS
from tests.helpers.hostile import (
    FORGED,
    PENDING,
    SHAKEN,
    TIMEOUT,
    Answer,
    chunked,
    connected,
    delivery,
    furnish,
    raw_request,
    say,
)
from tests.helpers.stores import ENDPOINT, body, event

ON_PORTS = pytest.mark.parametrize("door", ["aiohttp", "asgi"])
SHORT = 64 * 1024
CHUNKED = b"Transfer-Encoding: chunked"
GET = b"GET %b HTTP/1.1"


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    """A store with a confirmed and a pending registration."""
    async with MemoryStore() as opened:
        await furnish(opened)
        yield opened


def head(*lines: bytes, endpoint: str = ENDPOINT, **options: Any) -> bytes:
    return raw_request(*lines, length=False, target=f"/asana/{endpoint}", **options)


async def assert_answered_after(url: str, request: bytes, rest: bytes) -> Answer:
    """Return the answer to *request*, which comes only with *rest*: another request is answered in between."""
    async with connected(url) as ear, asyncio.timeout(TIMEOUT):
        ear.mouth.write(request)
        for _ in range(2):
            assert (await say(url, delivery())).status == 200
        assert not ear.heard, ear.heard[:12]
        ear.mouth.write(rest)
        await ear.answered.wait()
        return Answer(bytes(ear.heard))


DECIDED: dict[str, tuple[bytes, int]] = {
    "handshake": (head(SHAKEN, endpoint=PENDING), 200),
    "unsigned": (head(), 401),
    "unknown endpoint": (head(FORGED, endpoint="x" * 43), 404),
    "no endpoint at all": (head(FORGED, endpoint="x"), 404),
    "encoded": (head(FORGED, b"Content-Encoding: br"), 415),
    "health": (head(endpoint="health", start=GET), 200),
}


@ON_PORTS
@pytest.mark.parametrize("decided", DECIDED)
async def test_the_answer_comes_after_a_short_body(door: str, decided: str, store: MemoryStore) -> None:
    """Whatever the headers have decided, the rest of the body is read first, with a Content-Length and in chunks."""
    request, status = DECIDED[decided]
    async with DOORS[door](Receiver(store)) as url:
        for line, rest in ((b"Content-Length: 1000", bytes(1000)), (CHUNKED, chunked(bytes(1000)))):
            answer = await assert_answered_after(url, request[:-2] + line + b"\r\n\r\n", rest)
            assert answer.status == status


async def test_another_method_of_the_asgi_app_is_answered_after_a_short_body(store: MemoryStore) -> None:
    """The ASGI application reads the body before its 405, which aiohttp answers by itself."""
    async with DOORS["asgi"](Receiver(store)) as url:
        request = head(b"Content-Length: 1000", start=b"PUT %b HTTP/1.1")
        assert (await assert_answered_after(url, request, bytes(1000))).status == 405


@ON_PORTS
async def test_a_body_that_is_too_large_and_yet_short_is_read(door: str, store: MemoryStore) -> None:
    """It is answered 413 after its last byte, whether the announced length or the bytes that came decide it."""
    async with DOORS[door](Receiver(store, max_body=1000)) as url:
        announced = head(FORGED, b"Content-Length: 2000")
        assert (await assert_answered_after(url, announced + bytes(1500), bytes(500))).status == 413
        first = b"%x\r\n%b\r\n" % (1500, bytes(1500))
        assert (await assert_answered_after(url, head(FORGED, CHUNKED) + first, b"0\r\n\r\n")).status == 413


@ON_PORTS
async def test_a_long_body_is_not_read(door: str, store: MemoryStore) -> None:
    """A body of 64 KiB is read to its last byte; if one more is announced or arrives, the answer comes at once."""
    async with DOORS[door](Receiver(store, body_timeout=60, timeout=60)) as url:
        longest = head(b"Content-Length: %d" % SHORT)
        assert (await assert_answered_after(url, longest + bytes(SHORT - 1), b"x")).status == 401
        assert (await say(url, head(b"Content-Length: %d" % (SHORT + 1), keep_alive=True))).status == 401
        chunk = b"%x\r\n%b\r\n" % (SHORT, bytes(SHORT))
        assert (await assert_answered_after(url, head(CHUNKED) + chunk, b"1\r\nx\r\n")).status == 401


@ON_PORTS
async def test_who_is_turned_away_is_answered_at_once(door: str, store: MemoryStore) -> None:
    """A receiver that has too much to do, or stops, reads nothing more."""
    receiver = Receiver(store, max_pending=1, body_timeout=60, timeout=60)
    late = b"Content-Length: 1000"
    async with DOORS[door](receiver) as url, connected(url) as ear:
        ear.mouth.write(head(FORGED, late) + b"x")
        while (answer := await say(url, delivery(content=body(event())))).status == 200:
            pass  # the other one has not begun
        assert answer.body == b"too many requests or bytes in flight"
        assert (await say(url, head(late, keep_alive=True))).body == b"too many requests or bytes in flight"
        receiver.stop()
        assert (await say(url, head(late, keep_alive=True))).body == b"stopping"
        ear.mouth.write(bytes(999))
        await ear.answered.wait()


class Slow:
    """A body whose end comes when it is let."""

    def __init__(self, end: Exception | None = None) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()
        self._end = end

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"x"
        self.asked.set()
        await self.let.wait()
        if self._end is not None:
            raise self._end


async def test_bodies_that_are_only_dropped_keep_nobody_out(store: MemoryStore) -> None:
    """They do not count for max_pending, so strangers cannot fill it with them; closing waits for their answers."""
    receiver = Receiver(store, max_pending=1)
    bodies = [Slow() for _ in range(5)]
    dropping = [asyncio.create_task(receiver.receive(ENDPOINT, [], one.chunks())) for one in bodies]
    for one in bodies:
        await one.asked.wait()
    assert (await receiver.receive(ENDPOINT, [], b"")).status == 401

    closing = asyncio.create_task(receiver.aclose())
    for one, task in zip(bodies, dropping, strict=True):
        await asyncio.sleep(0)
        assert not closing.done()
        one.let.set()
        assert (await task).status == 401
    await closing


@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError("of a framework")])
async def test_a_body_that_breaks_while_it_is_dropped_changes_nothing(error: Exception, store: MemoryStore) -> None:
    """The answer stays what the headers decided, and is counted once."""
    broken = Slow(error)
    broken.let.set()
    receiver = Receiver(store)

    assert (await receiver.receive("x" * 43, [], broken.chunks())).status == 404
    assert broken.asked.is_set()
    assert sum(receiver.counts.values()) == 1


async def test_the_time_for_the_body_begins_with_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes longer than body_timeout to refuse does not make the peer wait that long again."""
    loop = asyncio.get_running_loop()

    class Late(MemoryStore):
        async def find_registration(self, id: str) -> None:
            began = loop.time()
            monkeypatch.setattr(loop, "time", lambda: began + 61)

    slow = Slow()
    receiving = asyncio.create_task(Receiver(Late(), body_timeout=60, timeout=90).receive(ENDPOINT, [], slow.chunks()))
    await slow.asked.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert receiving.done()
    assert receiving.result().status == 404


async def test_cancelling_ends_the_dropping(store: MemoryStore) -> None:
    """If a request is cancelled while its body is dropped, closing does not wait for it, and it is counted."""
    receiver, slow = Receiver(store), Slow()
    dropping = asyncio.create_task(receiver.receive(ENDPOINT, [], slow.chunks()))
    await slow.asked.wait()
    dropping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dropping
    await receiver.aclose()
    assert receiver.counts["no signature"] == 1
