"""The way of a proven delivery into the store: bounded, and finished whatever becomes of the request."""

import asyncio

import pytest

from asana_webhooks import MemoryStore, RejectedError, StoreUnavailableError
from asana_webhooks.receiver.handoff import HandOff
from asana_webhooks.store.base import NewDelivery, PutResult


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


async def start(store: Gate, handoff: HandOff, *contents: bytes) -> list["asyncio.Task[PutResult]"]:
    """Put deliveries, and wait until the store has begun with all of them."""
    tasks = [asyncio.create_task(handoff.put(delivery(content))) for content in contents]
    for _ in contents:
        await store.entered.acquire()
    return tasks


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
