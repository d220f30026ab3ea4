"""Finishing what must be finished, cancelled or not."""

import asyncio

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
    async def test_result(self, caplog: pytest.LogCaptureFixture) -> None:
        """The clean-up's result comes back, and one that returns nothing is no failure."""
        work = Work()
        work.go.set()

        assert await finish(work()) == "result"
        assert await finish(turns()) is None  # type: ignore[func-returns-value]
        assert caplog.records == []

    async def test_failure(self, caplog: pytest.LogCaptureFixture) -> None:
        """A failure is logged by its class alone, because its text may hold anything, and None comes back."""
        for error in (ValueError("canary"), TimeoutError("canary")):
            assert await finish(fail(error)) is None

        assert caplog.messages == ["cleaning up failed with ValueError", "cleaning up failed with TimeoutError"]

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
        started = asyncio.Event()

        async def failing() -> None:
            started.set()
            await turns()
            raise OSError("disk")

        task = asyncio.create_task(finish(failing()))
        await started.wait()
        task.cancel()
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

    async def test_in_a_finally_block(self) -> None:
        """A task that is cancelled while it waits cleans up before it goes; the message of the cancellation stays."""
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
        task.cancel("closing time")
        await work.started.wait()
        work.go.set()
        with pytest.raises(asyncio.CancelledError, match="closing time"):
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

    async def test_at_every_step(self) -> None:
        """Cancelled after any number of the loop's turns, the clean-up that has begun is always finished."""
        for steps in range(6):
            done: list[str] = []

            async def several_turns(done: list[str] = done) -> str:
                await turns(3)
                done.append("all")
                return "result"

            task = asyncio.create_task(finish(several_turns()))
            await turns(steps + 1)
            cancelled = task.cancel()
            (said,) = await asyncio.gather(task, return_exceptions=True)

            assert done == ["all"]
            assert isinstance(said, asyncio.CancelledError) if cancelled else said == "result"
