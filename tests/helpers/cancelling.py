"""Cancelling at every step: whatever a coroutine awaits, it is interrupted there once, in one of several ways."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

Start = Callable[[], Coroutine[Any, Any, Any]]
Way = Callable[[Start, int], Coroutine[Any, Any, bool]]
"""Runs a coroutine, interrupts it so many turns of the loop later, and tells whether it had not ended before."""


async def pass_turns(count: int) -> None:
    """Let the loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def cancel_once(start: Start, turns: int) -> bool:
    """Cancel its task; with no turns before it ever ran."""
    task = asyncio.create_task(start())
    await pass_turns(turns)
    return await _cancel(task)


async def cancel_thrice(start: Start, turns: int) -> bool:
    """Cancel its task twice at once and again while that has its effect; each of them is counted."""
    counts: list[int] = []

    async def counted() -> None:
        try:
            await start()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            counts.append(task.cancelling())
            raise

    task = asyncio.create_task(counted())
    await pass_turns(turns)
    task.cancel()
    task.cancel()
    await pass_turns(1)
    third = not task.done()
    interrupted = await _cancel(task) or task.cancelled()
    assert not counts or 2 <= counts[0] <= 2 + third
    return interrupted


async def cancel_waiting_for(start: Start, turns: int) -> bool:
    """Cancel an `asyncio.wait_for` around it. In Python 3.11 that prefers a result of the same turn."""

    async def limited() -> None:
        await asyncio.wait_for(start(), 60)

    task = asyncio.create_task(limited())
    await pass_turns(turns)
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    return task.cancelled()


async def let_timeout_expire(start: Start, turns: int) -> bool:
    """Let an `asyncio.timeout` around it expire; what comes out is that one's TimeoutError."""
    scope = asyncio.timeout(None)

    async def limited() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with scope:
                await start()
        finally:
            assert task.cancelling() == 0

    task = asyncio.create_task(limited())
    await pass_turns(1 + turns)
    if not task.done():
        scope.reschedule(0)
    await asyncio.wait({task})
    if scope.expired():
        assert type(task.exception()) is TimeoutError
    else:
        task.result()
    return scope.expired()


async def fail_a_sibling(start: Start, turns: int) -> bool:
    """Let another task of its TaskGroup fail; that error comes out alone."""

    async def fail() -> None:
        await pass_turns(turns)
        raise LookupError("a sibling failed")

    tasks: list[asyncio.Task[None]] = []
    with pytest.raises(BaseExceptionGroup) as failed:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(start()), group.create_task(fail())]
    assert list(failed.value.exceptions) == [tasks[1].exception()]
    return tasks[0].cancelled()


WAYS: list[Way] = [cancel_once, cancel_thrice, cancel_waiting_for, let_timeout_expire, fail_a_sibling]


async def _cancel(task: "asyncio.Task[Any]") -> bool:
    interrupted = task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
        assert not interrupted, "being cancelled was swallowed"
    return interrupted


async def cancel_at_every_step(
    start: Start, check: Callable[[], Awaitable[None]], *, way: Way = cancel_once, most: int = 2000
) -> int:
    """Run ``start()`` again and again, each time interrupted one turn of the loop later, until it ends by itself.

    After each run `check` looks for what is left behind. Returns how many runs were interrupted.
    """
    for turns in range(most):
        interrupted = await way(start, turns)
        await check()
        if not interrupted:
            return turns
    raise AssertionError(f"still not finished after {most} turns")
