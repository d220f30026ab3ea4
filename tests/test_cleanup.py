"""Cleaning up to the end, cancelled or not."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from asana_webhooks._tasks import finish


async def turns(count: int = 5) -> None:
    """Let everything that can run, run; no time passes."""
    for _ in range(count):
        await asyncio.sleep(0)


class Work:
    """A clean-up that waits until it is let go, and notes how far it came."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.steps: list[str] = []

    async def __call__(self) -> str:
        self.steps.append("started")
        self.started.set()
        try:
            await self.go.wait()
            self.steps.append("finished")
        except asyncio.CancelledError:
            self.steps.append("cancelled")
            raise
        return "result"


async def fail(error: BaseException) -> str:
    await asyncio.sleep(0)
    raise error


class TestUndisturbed:
    async def test_result(self) -> None:
        """The clean-up's result comes back."""
        work = Work()
        work.go.set()

        assert await finish(work()) == "result"

    async def test_none_is_a_result(self, caplog: pytest.LogCaptureFixture) -> None:
        """A clean-up that returns nothing is no failure."""

        async def nothing() -> str | None:
            await turns()
            return None

        assert await finish(nothing()) is None
        assert caplog.records == []

    @pytest.mark.parametrize("error", [ValueError("canary"), OSError("canary"), TimeoutError("canary")], ids=repr)
    async def test_failure(self, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
        """A failure is logged by its class alone, because its text may hold anything, and None comes back."""
        with caplog.at_level(logging.DEBUG):
            assert await finish(fail(error)) is None

        assert [(one.name, one.levelname, one.message) for one in caplog.records if one.name != "asyncio"] == [
            ("asana_webhooks._tasks", "WARNING", f"cleaning up failed with {type(error).__name__}")
        ]
        assert "canary" not in caplog.text

    async def test_too_slow(self, caplog: pytest.LogCaptureFixture) -> None:
        """A clean-up that takes too long is stopped; None comes back and nothing keeps running."""
        work = Work()

        assert await finish(work(), seconds=0.01) is None

        assert work.steps == ["started", "cancelled"]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert caplog.messages == ["cleaning up failed with TimeoutError"]

    async def test_no_time_at_all(self) -> None:
        """With no seconds to spare it is not a hang."""
        assert await finish(Work()(), seconds=0) is None

    async def test_clean_up_that_is_cancelled_itself(self) -> None:
        """If the clean-up ends in a cancellation of its own, the caller is not cancelled by it."""
        task = asyncio.current_task()

        assert await finish(fail(asyncio.CancelledError())) is None
        assert task is not None
        assert task.cancelling() == 0


async def cancelled_while_working(work: Work, times: int) -> "asyncio.Task[str | None]":
    task = asyncio.create_task(finish(work()))
    await work.started.wait()
    for _ in range(times):
        task.cancel()
        await turns()
    return task


class TestCancelled:
    @pytest.mark.parametrize("times", [1, 2, 5])
    async def test_is_survived_and_raised_again(self, times: int) -> None:
        """However often the caller is cancelled, the clean-up goes on to its end, and then the cancellation does."""
        work = Work()
        task = await cancelled_while_working(work, times)
        assert not task.done()

        work.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert work.steps == ["started", "finished"]
        assert task.cancelled()

    async def test_and_failing(self, caplog: pytest.LogCaptureFixture) -> None:
        """A failure does not swallow the cancellation; both are told."""
        started, go = asyncio.Event(), asyncio.Event()

        async def failing() -> None:
            started.set()
            await go.wait()
            raise OSError("disk")

        task = asyncio.create_task(finish(failing()))
        await started.wait()
        task.cancel()
        await turns()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert caplog.messages == ["cleaning up failed with OSError"]

    async def test_and_too_slow(self, caplog: pytest.LogCaptureFixture) -> None:
        """Cancellation does not make the limit longer: a hanging clean-up is stopped, then the caller is."""
        work = Work()
        task = asyncio.create_task(finish(work(), seconds=0.01))
        await work.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert work.steps == ["started", "cancelled"]
        assert caplog.messages == ["cleaning up failed with TimeoutError"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_message_of_the_cancellation_stays(self) -> None:
        """Whoever cancelled with a message finds it again."""
        work = Work()
        task = asyncio.create_task(finish(work()))
        await work.started.wait()
        task.cancel("closing time")
        await turns()
        work.go.set()

        with pytest.raises(asyncio.CancelledError, match="closing time"):
            await task

    async def test_in_a_finally_block(self) -> None:
        """The use it is made for: a task cancelled while it waits cleans up before it goes."""
        work = Work()
        waiting = asyncio.Event()

        async def service() -> None:
            try:
                waiting.set()
                await asyncio.Event().wait()
            finally:
                await finish(work())

        task = asyncio.create_task(service())
        await waiting.wait()
        task.cancel()
        await work.started.wait()
        work.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert work.steps == ["started", "finished"]

    async def test_timeout_around_it(self) -> None:
        """A caller's own timeout that runs out meanwhile is told afterwards, as a TimeoutError."""
        done: list[str] = []

        async def several_turns() -> None:
            await turns(20)
            done.append("all")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await finish(several_turns())

        assert done == ["all"]

    @pytest.mark.parametrize("steps", range(6))
    async def test_at_every_step(self, steps: int) -> None:
        """Cancelled after any number of the loop's turns, the clean-up that has begun is always finished."""
        done: list[str] = []

        async def several_turns() -> str:
            await turns(3)
            done.append("all")
            return "result"

        async def caller(cleanup: Callable[[], Awaitable[str | None]]) -> str | None:
            return await cleanup()

        task = asyncio.create_task(caller(lambda: finish(several_turns())))
        await turns(steps + 1)
        cancelled = task.cancel()
        (said,) = await asyncio.gather(task, return_exceptions=True)

        assert done == ["all"]
        assert isinstance(said, asyncio.CancelledError) if cancelled else said == "result"
