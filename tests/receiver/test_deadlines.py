"""Futures that wait too long end, each at its time, and one timer serves them all."""

import asyncio

import pytest

from asana_webhooks.receiver.deadlines import Deadlines


def future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


class Watched(Deadlines):
    """Counts how often its timer rings."""

    rung = 0

    def _end_overdue(self) -> None:
        self.rung += 1
        super()._end_overdue()


async def test_what_waits_too_long_ends() -> None:
    """It fails with a TimeoutError, and not before its time."""
    deadlines, waiting = Deadlines(0.02), future()
    begun = asyncio.get_running_loop().time()
    deadlines.add(waiting)

    with pytest.raises(TimeoutError):
        await waiting
    assert asyncio.get_running_loop().time() - begun >= 0.02
    deadlines.remove(waiting)


async def test_each_has_its_own_time() -> None:
    """Who comes later ends later, though nobody sets a timer for it."""
    deadlines, first, second = Watched(0.02), future(), future()
    loop = asyncio.get_running_loop()
    deadlines.add(first)
    await asyncio.wait({first}, timeout=0.01)
    begun = loop.time()
    deadlines.add(second)

    await asyncio.wait({first})
    assert not second.done()
    await asyncio.wait({second})
    assert loop.time() - begun >= 0.02
    assert (type(first.exception()), type(second.exception())) == (TimeoutError, TimeoutError)
    assert deadlines.rung >= 2


async def test_who_ends_in_time_is_left_alone() -> None:
    """Neither what was answered, nor what waits no longer, and no timer is left when nothing does."""
    deadlines, answered, gone, cancelled = Watched(0.01), future(), future(), future()
    for one in (answered, gone, cancelled):
        deadlines.add(one)
    deadlines.remove(gone)
    answered.set_result(None)
    cancelled.cancel()
    last = future()
    deadlines.add(last)
    await asyncio.wait({last})

    assert not gone.done()
    assert answered.exception() is None
    assert cancelled.cancelled()
    for one in (answered, cancelled, last):
        deadlines.remove(one)
    rung = deadlines.rung
    await asyncio.wait({gone}, timeout=0.03)
    assert deadlines.rung == rung


async def test_one_timer_serves_a_thousand() -> None:
    """However many come and go meanwhile."""
    deadlines = Watched(0.01)
    for _ in range(1000):
        waiting = future()
        deadlines.add(waiting)
        deadlines.remove(waiting)
    last = future()
    deadlines.add(last)
    await asyncio.wait({last})

    assert deadlines.rung <= 2


async def test_the_timer_can_be_stopped() -> None:
    """At the end nothing is left in the loop; while something waits, it goes on."""
    deadlines, waiting, later = Watched(0.01), future(), future()
    deadlines.add(waiting)
    deadlines.clear()
    await asyncio.wait({waiting})
    assert deadlines.rung == 1
    deadlines.remove(waiting)

    deadlines.add(later)
    deadlines.remove(later)
    deadlines.clear()
    deadlines.clear()
    await asyncio.wait({later}, timeout=0.03)
    assert deadlines.rung == 1
