"""Long bodies of strangers cannot starve short ones: above max_unproven, the largest is dropped first."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import MemoryStore, Receiver, Secret, sign_body
from asana_webhooks.receiver.body import BodyReader, Content
from asana_webhooks.receiver.protocol import Headers, ReceiveResult, RefusedError, Reply
from asana_webhooks.store.base import Registration
from tests.helpers.doors import DOORS
from tests.helpers.hostile import FORGED, TIMEOUT, chunked, connected, raw_request, say, signature
from tests.helpers.raw import until
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register

MIB = 1024 * 1024
OTHER = "Other_endpoint_0123456789_abcdefghijklmnopqr"
OTHER_SECRET = Secret("4f8b1e07c92d5a36be70d1f29c8a6453")
CHUNKED = b"Transfer-Encoding: chunked"


def honest(endpoint: str) -> bytes:
    """Return a true delivery in chunks, which no door takes for complete before it has read them."""
    content = body(event())
    start = raw_request(signature(content), CHUNKED, length=False, target=f"/asana/{endpoint}")
    return start + chunked(content)


@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
async def test_slow_long_bodies_keep_no_short_one_out(door: str) -> None:
    """Ten bodies of 8 MiB that lack a byte: as many are answered 503 as do not fit, and every true delivery 200."""
    async with MemoryStore() as store, AsyncExitStack() as stack:
        await register(store)
        await register(store, OTHER, gid="43215", label="other")
        receiver = Receiver(store, body_timeout=60, timeout=60)
        url = await stack.enter_async_context(DOORS[door](receiver))
        ears = [await stack.enter_async_context(connected(url)) for _ in range(10)]
        async with asyncio.timeout(TIMEOUT):
            for ear in ears:
                ear.mouth.write(raw_request(FORGED, b"Content-Length: %d" % (8 * MIB), length=False))
                ear.mouth.write(bytes(8 * MIB - 1))
            await until(lambda: receiver.counts[ReceiveResult.OVERLOADED] >= 2)
            for endpoint in [ENDPOINT, OTHER] * 10:
                assert (await say(url, honest(endpoint))).status == 200
            assert receiver.counts[ReceiveResult.STORED] == 20
            dropped = receiver.counts[ReceiveResult.OVERLOADED]
            assert dropped in {2, 3}  # the third made room for the true ones
            # The others are still waited for.
            await until(lambda: sum(ear.over.is_set() for ear in ears) == dropped)
            assert all(bytes(ear.heard[9:12]) in {b"503", b""} for ear in ears)


LIMIT = 100


class Sent:
    """A body that a test sends chunk by chunk to a reader."""

    def __init__(self, reader: BodyReader) -> None:
        self.size = 0
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.reading = asyncio.create_task(reader.read(self._chunks()))

    async def _chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self._queue.get():
            yield chunk

    async def send(self, size: int) -> None:
        """Send a chunk, or the end, and let the reader work."""
        self.size += size
        self._queue.put_nowait(bytes(size))
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def result(self) -> str:
        if not self.reading.done():
            return "unfinished"
        error = self.reading.exception()
        assert error is None or isinstance(error, RefusedError)
        return "read" if error is None else error.result


async def read_together(chunks: list[tuple[int, int]]) -> None:
    reader = BodyReader(max_body=10 * LIMIT, max_unproven=LIMIT, timeout=60)
    bodies = [Sent(reader) for _ in range(5)]
    for index, size in chunks:
        if bodies[index].result != "unfinished":
            continue
        unfinished = [one for one in bodies if one.result == "unfinished"]
        await bodies[index].send(size)
        left = [one for one in unfinished if one.result == "unfinished"]
        dropped = [one for one in unfinished if one.result == ReceiveResult.OVERLOADED]
        assert sum(one.size for one in left) <= LIMIT
        if dropped:
            assert sum(one.size for one in left) + min(one.size for one in dropped) > LIMIT
            assert min(one.size for one in dropped) >= max((one.size for one in left), default=0)
    for one in bodies:
        if one.result == "unfinished":
            await one.send(0)
            assert one.reading.result() == bytes(one.size)
    # Nothing is counted any more: all of the room is there, and no more than that.
    whole, more = Sent(reader), Sent(reader)
    await whole.send(LIMIT)
    await whole.send(0)
    await more.send(LIMIT + 1)
    assert (whole.result, more.result) == ("read", ReceiveResult.OVERLOADED)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 2 * LIMIT // 3)), max_size=25))
def test_the_largest_is_dropped_first(chunks: list[tuple[int, int]]) -> None:
    """In whatever order chunks come, the largest bodies fall, no more than needed, and no byte stays counted."""
    asyncio.run(read_together(chunks))


async def test_a_drop_may_come_with_the_timeout() -> None:
    """A short body is read even if the largest must be dropped in the moment in which its time is over."""
    reader = BodyReader(max_body=LIMIT, max_unproven=LIMIT, timeout=0)

    async def long() -> AsyncIterator[bytes]:
        yield bytes(90)
        await asyncio.Event().wait()

    async def short() -> AsyncIterator[bytes]:
        yield bytes(20)

    reading = asyncio.create_task(reader.read(long()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # its time is over, and it does not know it yet
    assert await reader.read(short()) == bytes(20)
    with pytest.raises(RefusedError, match="503"):
        await reading


@pytest.mark.parametrize("end", [bytes(LIMIT + 1), b""], ids=["its next chunk", "its end"])
async def test_what_comes_with_the_drop_is_too_late(end: bytes) -> None:
    """A body that is dropped while its next chunk, or its end, is on the way is refused all the same."""
    reader = BodyReader(max_body=LIMIT, max_unproven=LIMIT, timeout=60)
    coming: asyncio.Queue[bytes] = asyncio.Queue()

    async def long() -> AsyncIterator[bytes]:
        yield bytes(90)
        while chunk := await coming.get():
            yield chunk

    async def short() -> AsyncIterator[bytes]:
        coming.put_nowait(end)
        yield bytes(20)

    reading = asyncio.create_task(reader.read(long()))
    await asyncio.sleep(0)
    assert await reader.read(short()) == bytes(20)
    with pytest.raises(RefusedError, match="503"):
        await reading
    whole = Sent(reader)
    await whole.send(LIMIT)
    await whole.send(0)
    assert whole.result == "read"


@pytest.fixture
def traced() -> Iterator[None]:
    """Count the bytes of everything that is created."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


class Counting(Receiver):
    """Counts the bytes of bodies that have been read."""

    read = 0

    async def receive(self, endpoint: str, headers: Headers, body: Content) -> Reply:
        if not isinstance(body, bytes | bytearray | memoryview):
            body = self._counted(body)
        return await super().receive(endpoint, headers, body)

    async def _counted(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            self.read += len(chunk)
            yield chunk
            del chunk


@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
@pytest.mark.parametrize(("line", "kept"), [(FORGED, 1), (b"X: x", 0)], ids=["read", "dropped"])
async def test_no_chunk_is_kept_besides_what_is_counted(door: str, line: bytes, kept: int, traced: None) -> None:
    """While 40 bodies lack a byte, those to be verified are in memory once, and those to be dropped not at all."""
    size, number = 60_000, 40
    async with MemoryStore() as store, AsyncExitStack() as stack:
        await register(store)
        receiver = Counting(store, body_timeout=60, timeout=60)
        url = await stack.enter_async_context(DOORS[door](receiver))
        assert (await say(url, honest(ENDPOINT))).status == 200  # now everything is imported
        before, receiver.read = tracemalloc.get_traced_memory()[0], 0
        for _ in range(number):
            ear = await stack.enter_async_context(connected(url))
            ear.mouth.write(raw_request(line, b"Content-Length: %d" % (size + 1), length=False) + bytes(size))
        await until(lambda: receiver.read == size * number)
        grown = tracemalloc.get_traced_memory()[0] - before
        assert grown < size * number * (kept + 0.5)


class Asked(MemoryStore):
    """A store that, once it is slow, does not say whose a registration is, or says another secret."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.is_slow = 0, False
        self.secret: Secret | None = None

    async def find_registration(self, id: str) -> Registration | None:
        self.asked += 1
        if self.is_slow:
            await asyncio.Event().wait()
        found = await super().find_registration(id)
        return evolve(found, secret=self.secret) if found and self.secret else found


def in_two(content: bytes, secret: Secret) -> tuple[Headers, AsyncIterator[bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        yield content[:100]
        yield content[100:]

    return [(b"X-Hook-Signature", sign_body(content, secret=secret).encode())], chunks()


async def test_a_long_forged_body_is_freed_while_the_store_is_asked(traced: None) -> None:
    """Nothing limits the time of the store, or how many wait for it, so none of them keeps a body."""
    async with Asked() as store:
        await register(store)
        receiver = Receiver(store)
        assert (await receiver.receive(ENDPOINT, *in_two(body(event()), SECRET))).status == 200
        store.is_slow, store.asked = True, 0
        content = bytes(MIB)
        before = tracemalloc.get_traced_memory()[0]
        waiting = [asyncio.create_task(receiver.receive(ENDPOINT, *in_two(content, OTHER_SECRET))) for _ in range(20)]
        await until(lambda: store.asked == 20)
        assert tracemalloc.get_traced_memory()[0] - before < 2 * MIB
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


@pytest.mark.parametrize("size", [0, 100_000], ids=["short", "long"])
async def test_another_secret_than_the_cached_one(size: int) -> None:
    """Should the store name one, against its promise, it counts from the next request on: Asana sends again."""
    async with Asked() as store:
        await register(store)
        receiver = Receiver(store)
        assert (await receiver.receive(ENDPOINT, *in_two(body(event()), SECRET))).status == 200
        store.secret = OTHER_SECRET
        content = body(event(note="x" * size))
        for expected in (401, 200):
            assert (await receiver.receive(ENDPOINT, *in_two(content, OTHER_SECRET))).status == expected
