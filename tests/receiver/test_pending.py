"""The way of a verified delivery into the store: bounded, in time, and finished whatever becomes of the request."""

import asyncio
import gc
from collections.abc import Callable

import pytest
from attrs import define, field

from asana_webhooks import MemoryStore, StoreUnavailableError
from asana_webhooks.receiver.pending import PendingDeliveries
from asana_webhooks.receiver.protocol import RefusedError
from asana_webhooks.store.base import NewDelivery, PutResult
from tests.helpers.cancelling import pass_turns
from tests.helpers.raw import until

Answers = list["asyncio.Future[PutResult]"]


class HeldStore(MemoryStore):
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


class FutureStore(MemoryStore):
    """A store whose `put` returns a future, as that of the SQLite store; perhaps one for all that share a commit."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.futures: Answers = []
        self._is_shared = shared

    def put(self, _: NewDelivery) -> "asyncio.Future[PutResult]":  # type: ignore[override]
        if not (self._is_shared and self.futures):
            self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]


def pending_in(store: MemoryStore, *, most: int = 9, max_bytes: int = 100, timeout: float = 60) -> PendingDeliveries:
    return PendingDeliveries(store, max_deliveries=most, max_bytes=max_bytes, timeout=timeout)


def delivery(content: bytes = b"1") -> NewDelivery:
    return NewDelivery(registration="r", signature="0" * 64, body=content)


async def start(store: HeldStore, pending: PendingDeliveries, *contents: bytes) -> Answers:
    """Put deliveries, and wait until the store has begun with all of them."""
    answers = [pending.put(delivery(content)) for content in contents]
    for _ in contents:
        await store.entered.acquire()
    return answers


def assert_no_room(pending: PendingDeliveries, size: int = 0) -> None:
    with pytest.raises(RefusedError, match="503: too many requests or bytes in flight"):
        pending.check_room(size)


# Bounds


async def test_so_many_and_no_more() -> None:
    """One delivery too many is refused at once, without asking the store, until another one has arrived."""
    store = HeldStore()
    pending = pending_in(store, most=2)
    answers = await start(store, pending, b"1", b"2")

    assert_no_room(pending)
    with pytest.raises(RefusedError):
        await pending.put(delivery(b"3"))
    assert store.entered.locked()
    store.go.set()
    assert await asyncio.gather(*answers) == ["stored", "stored"]
    pending.check_room()
    assert await pending.put(delivery(b"3")) == "stored"


async def test_so_many_bytes_and_no_more() -> None:
    """Bodies count together, up to the last byte."""
    store = HeldStore()
    pending = pending_in(store, max_bytes=10)
    answers = await start(store, pending, b"1234567")

    pending.check_room(3)
    with pytest.raises(RefusedError):
        await pending.put(delivery(b"1234"))
    answers += await start(store, pending, b"123")
    store.go.set()
    await asyncio.gather(*answers)
    pending.check_room(10)
    assert_no_room(pending, 11)


# Whatever becomes of the request


async def test_who_gives_up_interrupts_nothing() -> None:
    """A cancelled request leaves the store to finish what it has begun, and that counts until it is."""
    store = HeldStore()
    pending = pending_in(store, most=1)
    [answer] = await start(store, pending, b"1")

    answer.cancel()
    assert_no_room(pending)
    store.go.set()
    assert await pending.drain(60) == 0
    assert store.written == [b"1"]
    pending.check_room()


async def test_a_failure_nobody_waits_for_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """It was not acknowledged, so Asana sends it again; asyncio does not complain about it either."""
    store = HeldStore()
    pending = pending_in(store, most=1)
    store.error = StoreUnavailableError(problem="the disk is full")
    [answer] = await start(store, pending, b"1")
    answer.cancel()
    store.go.set()

    assert await pending.drain(60) == 0
    pending.check_room()
    gc.collect()
    assert caplog.text == ""


async def test_what_does_not_end_is_ended() -> None:
    """Whoever wants to stop waits for so long, and hears how many never came to an end."""
    store = HeldStore()
    pending = pending_in(store)
    answers = await start(store, pending, b"1", b"2")

    assert await pending.drain(0) == 2
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(one) for one in results] == [asyncio.CancelledError] * 2
    assert await pending.drain(60) == 0
    assert store.written == []


async def test_what_is_ending_is_interrupted_once() -> None:
    """Of several who want to stop at the same time, only one ends what is late, and the others wait with it."""
    interrupted, tidy = 0, asyncio.Event()

    class Tidying(HeldStore):
        async def put(self, delivery: NewDelivery) -> PutResult:
            try:
                return await super().put(delivery)
            except asyncio.CancelledError:
                nonlocal interrupted
                interrupted += 1
                await tidy.wait()
                raise

    store = Tidying()
    pending = pending_in(store)
    [answer] = await start(store, pending, b"1")
    closing = [asyncio.create_task(pending.drain(0)) for _ in range(3)]
    await until(lambda: interrupted > 0)
    closing.append(asyncio.create_task(pending.drain(0)))
    await pass_turns(10)
    tidy.set()

    assert sorted(await asyncio.gather(*closing)) == [0, 0, 0, 1]
    assert interrupted == 1
    with pytest.raises(asyncio.CancelledError):
        await answer


async def test_a_future_needs_no_task() -> None:
    """It is not cancelled with who waits for it, and counts until it is done or the end has come."""
    store = FutureStore()
    pending = pending_in(store, most=2)
    answers = [pending.put(delivery()) for _ in range(2)]
    assert len(store.futures) == 2
    assert len(asyncio.all_tasks()) == 1
    answers[0].cancel()
    await pass_turns(2)
    assert [one.cancelled() for one in store.futures] == [False, False]
    assert_no_room(pending)
    store.futures[0].set_result("stored")
    await pass_turns(2)
    pending.check_room()

    assert await pending.drain(0) == 1
    assert store.futures[1].cancelled()
    with pytest.raises(asyncio.CancelledError):
        await answers[1]


async def test_a_future_may_stand_for_several() -> None:
    """Each delivery counts by itself until they are all stored, and each is answered."""
    store = FutureStore(shared=True)
    pending = pending_in(store, most=2)
    answers = [pending.put(delivery()) for _ in range(2)]
    assert_no_room(pending)

    store.futures[0].set_result("stored")
    assert await asyncio.gather(*answers) == ["stored", "stored"]
    pending.check_room(100)
    assert await pending.drain(0) == 0


# Time


@define(eq=False)
class Timer:
    """One that a `HandTime` rings."""

    due_at: float
    ring: Callable[[], None]
    is_on: bool = True

    def cancel(self) -> None:
        self.is_on = False


@define(eq=False)
class HandTime:
    """The time of the running loop, moved by hand."""

    now: float = 100.0
    timers: list[Timer] = field(factory=list)

    def time(self) -> float:
        return self.now

    def call_at(self, due_at: float, ring: Callable[[], None]) -> Timer:
        self.timers.append(Timer(due_at, ring))
        return self.timers[-1]

    def pass_to(self, now: float) -> None:
        """Ring whatever is due until then."""
        while due := [timer for timer in self.timers if timer.is_on and timer.due_at <= now]:
            timer = min(due, key=lambda one: one.due_at)
            self.now, timer.is_on = timer.due_at, False
            timer.ring()
        self.now = now

    @property
    def is_quiet(self) -> bool:
        """Whether no timer is left."""
        return not any(timer.is_on for timer in self.timers)


@pytest.fixture
async def hand(monkeypatch: pytest.MonkeyPatch) -> HandTime:
    """The running loop's time, moved by hand."""
    hand, loop = HandTime(), asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", hand.time)
    monkeypatch.setattr(loop, "call_at", hand.call_at)
    return hand


async def test_each_has_its_own_time(hand: HandTime) -> None:
    """Each ends with a TimeoutError at its time and not before, with one timer after the other."""
    pending = pending_in(FutureStore(), timeout=8.0)
    answers = []
    for _ in range(3):
        answers.append(pending.put(delivery()))
        hand.now += 1
    assert len(hand.timers) == 1

    for number, now in enumerate((108.0, 109.0, 110.0), 1):
        hand.pass_to(now - 0.1)
        assert [one.done() for one in answers].count(True) == number - 1
        hand.pass_to(now)
        assert [one.done() for one in answers].count(True) == number
    assert [type(one.exception()) for one in answers] == [TimeoutError] * 3
    assert len(hand.timers) == 3
    assert hand.is_quiet


async def test_who_ends_in_time_is_left_alone(hand: HandTime) -> None:
    """Neither what was stored nor what was given up times out, and what times out still counts as pending."""
    store = FutureStore()
    pending = pending_in(store, most=3, timeout=8.0)
    stored, given_up, late = [pending.put(delivery()) for _ in range(3)]
    store.futures[0].set_result("stored")
    given_up.cancel()
    await pass_turns(2)
    hand.pass_to(200.0)

    assert stored.result() == "stored"
    assert given_up.cancelled()
    assert type(late.exception()) is TimeoutError
    assert hand.is_quiet
    with pytest.raises(RefusedError):
        pending.check_room(99)
    for one in store.futures[1:]:
        one.set_result("stored")
    await pass_turns(2)
    pending.check_room(100)


async def test_one_timer_serves_all_that_come_until_it_is_due(hand: HandTime) -> None:
    """However many come and go meanwhile; after it, the next one to come sets another."""
    store = FutureStore()
    pending = pending_in(store, timeout=8.0)
    for _ in range(1000):
        answer = pending.put(delivery())
        store.futures[-1].set_result("stored")
        await answer
        hand.pass_to(hand.now + 0.007)
    assert len(hand.timers) == 1
    hand.pass_to(200.0)
    assert hand.is_quiet

    answer = pending.put(delivery())
    hand.pass_to(208.0)
    assert type(answer.exception()) is TimeoutError


async def test_the_timer_ends_with_the_rest(hand: HandTime) -> None:
    """Once all is over, nothing is left in the loop, whether it was stored or given up."""
    store = FutureStore()
    pending = pending_in(store, timeout=8.0)
    for gives_up in (False, True):
        answer = pending.put(delivery())
        if gives_up:
            answer.cancel()
        store.futures[-1].set_result("stored")
        await pass_turns(2)
        assert not hand.is_quiet
        assert await pending.drain(60) == 0
        assert hand.is_quiet
