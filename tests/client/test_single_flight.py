"""Single flight: once for all, left by those who are cancelled, ended with the last."""

import asyncio
import gc
from typing import Any

import pytest
from attrs import define, field

from asana_webhooks.client.single_flight import SingleFlight
from tests.helpers.cancelling import (
    Way,
    cancel_at_every_step,
    cancel_once,
    cancel_thrice,
    fail_a_sibling,
    let_timeout_expire,
)


@define
class Work:
    """Counts its runs; each waits until it is let go."""

    runs: int = 0
    ended: int = 0
    error: Exception | None = None
    stubborn: bool = False
    """Whether it goes on for a while when it is cancelled."""
    began: asyncio.Event = field(factory=asyncio.Event)
    go: asyncio.Event = field(factory=asyncio.Event)

    async def __call__(self) -> int:
        self.runs += 1
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            for _ in range(10 if self.stubborn else 0):
                await asyncio.sleep(0)
            raise
        finally:
            self.ended += 1
        if self.error is not None:
            raise self.error
        return self.runs

    def flight(self) -> SingleFlight[int]:
        return SingleFlight(self, ending=5.0)


async def asking(flight: SingleFlight[int], work: Work, count: int) -> list["asyncio.Task[int]"]:
    """Start that many callers, and return when all of them wait."""
    tasks = [asyncio.create_task(flight()) for _ in range(count)]
    await work.began.wait()
    return tasks


async def test_once_for_all() -> None:
    """Fifty callers get the result of one run; the next caller gets a run of its own."""
    work = Work()
    flight = work.flight()
    tasks = await asking(flight, work, 50)
    work.go.set()

    assert await asyncio.gather(*tasks) == [1] * 50
    assert await flight() == 2


async def test_an_exception_is_everybodys() -> None:
    """All who wait get it, and it is not remembered."""
    work = Work(error=ValueError("no"))
    flight = work.flight()
    tasks = await asking(flight, work, 3)
    work.go.set()

    assert [type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)] == [ValueError] * 3
    work.error = None
    assert await flight() == 2


@pytest.mark.parametrize("leaving", [0, 1, 2])
async def test_one_leaves(leaving: int) -> None:
    """Whoever is cancelled, the first too, goes at once and leaves the run to the others."""
    work = Work()
    tasks = await asking(work.flight(), work, 3)
    tasks[leaving].cancel()
    await asyncio.wait({tasks[leaving]})
    assert tasks[leaving].cancelled()
    assert work.ended == 0
    work.go.set()

    others = [task for task in tasks if task is not tasks[leaving]]
    assert await asyncio.gather(*others) == [1, 1]
    assert work.runs == 1


async def test_all_leave() -> None:
    """When the last is cancelled the run is too, and it has ended when that one has."""
    work = Work(stubborn=True)
    tasks = await asking(work.flight(), work, 3)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert all(task.cancelled() for task in tasks)
    assert (work.runs, work.ended) == (1, 1)


async def test_coming_while_it_is_being_dropped() -> None:
    """A caller who comes while a run is ending gets a new one, not a cancellation."""
    work = Work(stubborn=True)
    flight = work.flight()
    (first,) = await asking(flight, work, 1)
    first.cancel()
    await asyncio.sleep(0)  # first has cancelled the run, which goes on for a moment
    assert work.ended == 0
    second = asyncio.create_task(flight())
    await asyncio.wait({first})
    work.go.set()

    assert first.cancelled()
    assert await second == 2


async def test_a_run_cancelled_by_a_stranger() -> None:
    """A program that cancels every task it finds does not leave the callers without an answer."""
    work = Work()
    (task,) = await asking(work.flight(), work, 1)
    for other in asyncio.all_tasks() - {task, asyncio.current_task()}:
        other.cancel()
    work.go.set()

    assert await task == 2


@pytest.mark.parametrize("way", [cancel_once, cancel_thrice, let_timeout_expire, fail_a_sibling])
@pytest.mark.parametrize("others", [0, 1])
async def test_at_every_step(others: int, way: Way) -> None:
    """Wherever a caller is interrupted, the others get their result, and nothing runs on."""
    works: list[Work] = []
    results: list[Any] = []

    async def play() -> None:
        work = Work(stubborn=True)
        works.append(work)
        work.go.set()
        flight = work.flight()
        rest = [asyncio.create_task(flight()) for _ in range(others)]
        try:
            await flight()
        finally:
            results.extend(await asyncio.gather(*rest))

    async def check() -> None:
        assert len(asyncio.all_tasks()) == 1
        assert all(work.runs == work.ended <= 1 for work in works)

    runs = await cancel_at_every_step(play, check, way=way)

    assert runs >= 2
    assert set(results) <= {1}


async def test_a_run_that_cancels_itself() -> None:
    """It is an error for all and no reason to run again for ever."""
    runs = 0

    async def start() -> None:
        nonlocal runs
        runs += 1
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="cancelled twice"):
        await SingleFlight(start, ending=5.0)()
    assert runs == 2


async def test_an_error_that_nobody_waits_for() -> None:
    """A run that answers its cancellation with an error leaves no complaint of the loop's behind."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    began = asyncio.Event()

    async def start() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("no")

    waiting = asyncio.create_task(SingleFlight(start, ending=5.0)())
    await began.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    del waiting
    gc.collect()
    await asyncio.sleep(0)

    assert complaints == []
