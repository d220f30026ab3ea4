"""Futures that wait too long end, each at its time, and one timer serves them all."""

import asyncio
from collections.abc import Callable

import pytest
from attrs import define, field

from asana_webhooks.receiver.deadlines import Deadlines


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


def future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


async def test_what_waits_too_long_ends(hand: HandTime) -> None:
    """It fails with a TimeoutError, and not before its time."""
    deadlines, waiting = Deadlines(8.0), future()
    deadlines.add(waiting)

    hand.pass_to(107.9)
    assert not waiting.done()
    hand.pass_to(108.0)
    with pytest.raises(TimeoutError):
        await waiting


async def test_each_has_its_own_time(hand: HandTime) -> None:
    """Who comes later ends later, with one timer after the other."""
    deadlines, waiting = Deadlines(8.0), [future() for _ in range(3)]
    for one in waiting:
        deadlines.add(one)
        hand.now += 1
    assert len(hand.timers) == 1

    for number, now in enumerate((108.0, 109.0, 110.0), 1):
        hand.pass_to(now)
        assert [one.done() for one in waiting].count(True) == number
        for one in waiting[:number]:
            assert type(one.exception()) is TimeoutError
    assert len(hand.timers) == 3
    assert hand.is_quiet


async def test_who_ends_in_time_is_left_alone(hand: HandTime) -> None:
    """Neither what was answered or given up is touched, nor what waits no longer."""
    deadlines, answered, gone, cancelled, late = Deadlines(8.0), future(), future(), future(), future()
    for one in (answered, gone, cancelled, late):
        deadlines.add(one)
    deadlines.remove(gone)
    answered.set_result(None)
    cancelled.cancel()
    hand.pass_to(200.0)

    assert not gone.done()
    assert answered.exception() is None
    assert cancelled.cancelled()
    assert type(late.exception()) is TimeoutError
    assert hand.is_quiet
    assert deadlines._deadlines == {}
    deadlines.remove(late)


async def test_one_timer_serves_all_that_come_until_it_is_due(hand: HandTime) -> None:
    """However many come and go meanwhile; after it, the next one to come sets another."""
    deadlines = Deadlines(8.0)
    for _ in range(1000):
        waiting = future()
        deadlines.add(waiting)
        deadlines.remove(waiting)
        hand.pass_to(hand.now + 0.007)
    assert len(hand.timers) == 1
    hand.pass_to(200.0)
    assert hand.is_quiet

    waiting = future()
    deadlines.add(waiting)
    hand.pass_to(208.0)
    assert waiting.done()


async def test_the_timer_can_be_stopped(hand: HandTime) -> None:
    """At the end nothing is left in the loop; while something waits, it goes on."""
    deadlines, waiting, given_up = Deadlines(8.0), future(), future()
    deadlines.add(waiting)
    deadlines.clear()
    assert not hand.is_quiet

    deadlines.remove(waiting)
    deadlines.clear()
    deadlines.clear()
    assert hand.is_quiet
    deadlines.add(given_up)
    given_up.cancel()
    deadlines.clear()
    assert hand.is_quiet
    assert deadlines._deadlines == {}
    deadlines.add(waiting)
    assert not hand.is_quiet
