"""The way of a proven delivery into the store: bounded, and finished whatever becomes of the request."""

import asyncio

import pytest

from asana_webhooks import MemoryStore, RejectedError, StoreUnavailableError
from asana_webhooks.receiver.pending import HandOff
from asana_webhooks.store.base import NewDelivery, PutResult
from tests.helpers.cancelling import pass_turns
from tests.helpers.raw import until


class Gate(MemoryStore):
    """A store whose `put` waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.written: list[bytes] = []
        self.error: BaseException | None = None

    async def put(self, delivery: NewDelivery) -> PutResult:
        self.entered.release()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.written.append(delivery.body)
        return "stored"


def delivery(content: bytes) -> NewDelivery:
    return NewDelivery(registration="r", signature="0" * 64, body=content)


async def start(store: Gate, handoff: HandOff, *contents: bytes) -> list["asyncio.Future[PutResult]"]:
    """Put deliveries, and wait until the store has begun with all of them."""
    answers = [handoff.put(delivery(content)) for content in contents]
    for _ in contents:
        await store.entered.acquire()
    return answers


async def test_so_many_and_no_more() -> None:
    """One delivery too many is refused at once, without asking the store, until another one has arrived."""
    store = Gate()
    handoff = HandOff(store, max_deliveries=2, max_bytes=100, timeout=60)
    tasks = await start(store, handoff, b"1", b"2")

    with pytest.raises(RejectedError, match="503: too much under way"):
        await handoff.put(delivery(b"3"))
    with pytest.raises(RejectedError):
        handoff.check_room()
    assert store.entered.locked()
    store.go.set()
    assert await asyncio.gather(*tasks) == ["stored", "stored"]
    handoff.check_room()
    assert await handoff.put(delivery(b"3")) == "stored"


async def test_so_many_bytes_and_no_more() -> None:
    """Bodies count together, up to the last byte."""
    store = Gate()
    handoff = HandOff(store, max_deliveries=9, max_bytes=10, timeout=60)
    tasks = await start(store, handoff, b"1234567")

    handoff.check_room(3)
    with pytest.raises(RejectedError):
        await handoff.put(delivery(b"1234"))
    tasks += await start(store, handoff, b"123")
    store.go.set()
    await asyncio.gather(*tasks)
    handoff.check_room(10)
    with pytest.raises(RejectedError):
        handoff.check_room(11)


async def test_who_gives_up_interrupts_nothing() -> None:
    """A cancelled request leaves the store to finish what it has begun, and that counts until it is."""
    store = Gate()
    handoff = HandOff(store, max_deliveries=1, max_bytes=10, timeout=60)
    (task,) = await start(store, handoff, b"1")

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(RejectedError):
        handoff.check_room()
    store.go.set()
    assert await handoff.empty(60) == 0
    assert store.written == [b"1"]
    handoff.check_room()


async def test_a_failure_nobody_waits_for_is_no_trouble() -> None:
    """It was not acknowledged, so Asana sends it again; nothing is left behind that would be logged as lost."""
    store = Gate()
    handoff = HandOff(store, max_deliveries=1, max_bytes=10, timeout=60)
    store.error = StoreUnavailableError(problem="the disk is full")
    (task,) = await start(store, handoff, b"1")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    store.go.set()

    assert await handoff.empty(60) == 0
    handoff.check_room()


async def test_what_does_not_end_is_ended() -> None:
    """Whoever wants to stop waits for so long, and hears how many never came to an end."""
    store = Gate()
    handoff = HandOff(store, max_deliveries=2, max_bytes=10, timeout=60)
    tasks = await start(store, handoff, b"1", b"2")

    assert await handoff.empty(0) == 2
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [asyncio.CancelledError] * 2
    assert await handoff.empty(60) == 0
    assert store.written == []


async def test_nothing_is_left_of_what_has_arrived() -> None:
    """Neither what was stored, nor what was given up, nor a timer once the end has come."""
    store = Gate()
    handoff = HandOff(store, max_deliveries=3, max_bytes=100, timeout=0.01)
    (late,) = await start(store, handoff, b"1")
    with pytest.raises(TimeoutError):
        await late
    (given_up,) = await start(store, handoff, b"2")
    given_up.cancel()
    await asyncio.wait({given_up})
    store.go.set()
    assert await handoff.put(delivery(b"3")) == "stored"

    assert handoff._deadlines._deadlines == {}
    assert await handoff.empty(60) == 0
    assert sorted(store.written) == [b"1", b"2", b"3"]
    assert (handoff._writing, handoff._bytes) == ({}, 0)
    assert handoff._deadlines._deadlines == {}
    assert handoff._deadlines._timer is None


class Tidying(Gate):
    """A store that takes a while to end when it is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupted = 0
        self.tidy = asyncio.Event()

    async def put(self, delivery: NewDelivery) -> PutResult:
        try:
            return await super().put(delivery)
        except asyncio.CancelledError:
            self.interrupted += 1
            await self.tidy.wait()
            raise


async def test_what_is_ending_is_interrupted_once() -> None:
    """Of several who want to stop at the same time, only one ends what is late, and the others wait with it."""
    store = Tidying()
    handoff = HandOff(store, max_deliveries=1, max_bytes=10, timeout=60)
    (task,) = await start(store, handoff, b"1")
    closing = [asyncio.create_task(handoff.empty(0)) for _ in range(3)]
    await until(lambda: store.interrupted > 0)
    closing.append(asyncio.create_task(handoff.empty(0)))
    await pass_turns(10)
    store.tidy.set()

    assert sorted(await asyncio.gather(*closing)) == [0, 0, 0, 1]
    assert store.interrupted == 1
    with pytest.raises(asyncio.CancelledError):
        await task


class FutureStore(MemoryStore):
    """A store whose `put` returns a future, as that of the SQLite store."""

    def __init__(self) -> None:
        super().__init__()
        self.writing: list[asyncio.Future[PutResult]] = []

    def put(self, _: NewDelivery) -> "asyncio.Future[PutResult]":  # type: ignore[override]
        self.writing.append(asyncio.get_running_loop().create_future())
        return self.writing[-1]


async def test_a_future_needs_no_task() -> None:
    """It is not cancelled with who waits for it, and counts until it is done or the end has come."""
    store = FutureStore()
    handoff = HandOff(store, max_deliveries=2, max_bytes=10, timeout=60)
    putting = [handoff.put(delivery(b"1")) for _ in range(2)]
    assert len(store.writing) == 2
    assert len(asyncio.all_tasks()) == 1
    putting[0].cancel()
    await asyncio.wait({putting[0]})
    assert [one.cancelled() for one in store.writing] == [False, False]
    with pytest.raises(RejectedError):
        handoff.check_room()
    store.writing[0].set_result("stored")
    await pass_turns(2)
    handoff.check_room()

    assert await handoff.empty(0) == 1
    assert store.writing[1].cancelled()
    with pytest.raises(asyncio.CancelledError):
        await putting[1]


class SharingStore(MemoryStore):
    """A store whose `put` returns the same future to all that share a commit."""

    def __init__(self) -> None:
        super().__init__()
        self.commit: asyncio.Future[PutResult] = asyncio.get_running_loop().create_future()

    def put(self, _: NewDelivery) -> "asyncio.Future[PutResult]":  # type: ignore[override]
        return self.commit


async def test_a_future_may_stand_for_several() -> None:
    """Each delivery counts by itself until they are all stored, and each is answered."""
    store = SharingStore()
    handoff = HandOff(store, max_deliveries=2, max_bytes=10, timeout=60)
    putting = [handoff.put(delivery(b"1")) for _ in range(2)]
    with pytest.raises(RejectedError):
        handoff.check_room()

    store.commit.set_result("stored")
    assert await asyncio.gather(*putting) == ["stored", "stored"]
    handoff.check_room(10)
    assert await handoff.empty(0) == 0
