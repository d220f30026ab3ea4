"""Time limits with one timer for all of them: each ends its own block, and nobody else's cancellation is swallowed."""

import asyncio
import math
from contextlib import suppress
from typing import Any

import pytest

from asana_webhooks.client.time_limit import TimeLimits
from tests.helpers.cancelling import pass_turns


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.TimerHandle]:
    """Collect the loop's timers that are set."""
    loop = asyncio.get_running_loop()
    noted: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def note(when: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        noted.append(call_at(when, *arguments, **options))
        return noted[-1]

    monkeypatch.setattr(loop, "call_at", note)
    return noted


def now() -> float:
    return asyncio.get_running_loop().time()


def current() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


async def forever() -> None:
    await asyncio.Event().wait()


class TestEnding:
    @pytest.mark.parametrize("before", [0, 1e-3], ids=["past", "soon"])
    async def test_at_its_end(self, before: float, timers: list[asyncio.TimerHandle]) -> None:
        """The body is cancelled, what follows the block goes on, and the task does not count as cancelled.

        The first look finds it at its end; a loop may look a tick of its clock too early.
        """
        limits = TimeLimits()
        with limits.until(now() + before) as limit:
            await forever()

        assert (limit.expired, current().cancelling(), limits.entered) == (True, 0, set())
        assert len(timers) <= 2

    async def test_moved(self) -> None:
        """An end may come later than was said first, or sooner; once all is closed, it cannot be put off."""
        limits = TimeLimits()
        with limits.until(now() + 1e-3) as limit:
            limit.move_to(now() + 3600)
            await asyncio.sleep(2e-3)
            assert not limit.expired
            limit.move_to(now())
            await forever()
        assert limit.expired

        limits.close()
        with limits.until() as closed:
            closed.move_to(now() + 3600)
            await forever()
        assert closed.expired

    async def test_done_before(self) -> None:
        """A body that is done in time is left as it is, and so is what it raises."""
        limits = TimeLimits()
        with limits.until(now() + 3600) as limit:
            await pass_turns(1)
        with pytest.raises(LookupError), limits.until(now() + 3600):
            raise LookupError

        assert not limit.expired
        assert not limits.entered

    async def test_each_has_its_own(self) -> None:
        """What ends first does not end what began first, and the later one ends too."""
        limits = TimeLimits()
        ended: list[str] = []

        async def wait(name: str, seconds: float) -> None:
            with limits.until(now() + 3600) as limit:
                limit.move_to(now() + seconds)
                await forever()
            ended.append(name)

        waiting = [asyncio.create_task(wait("long", 1800)), asyncio.create_task(wait("short", 1e-3))]
        await waiting[1]
        assert ended == ["short"]
        limits.close()
        await waiting[0]
        assert ended == ["short", "long"]

    async def test_one_after_the_other(self) -> None:
        """Ends that follow each other are all met, although the looks at them are not too close together."""
        limits = TimeLimits()
        start = now()

        async def wait(seconds: float) -> float:
            with limits.until(start + seconds):
                await forever()
            return now() - start - seconds

        late = await asyncio.gather(*(wait(number * 1e-5) for number in range(100)))
        assert min(late) > 0

    async def test_what_ignores_its_end(self) -> None:
        """Whoever lets no cancellation through is done when it is done, and can see that it is late."""
        with TimeLimits().until(now()) as limit:
            try:
                await forever()
            except asyncio.CancelledError:
                late = limit.expired
        assert (late, current().cancelling()) == (True, 0)

    async def test_an_error_on_the_way_out(self) -> None:
        """What the body raises when it is cancelled is not lost."""
        with pytest.raises(LookupError), TimeLimits().until(now()):
            try:
                await forever()
            finally:
                raise LookupError

    async def test_within_another(self) -> None:
        """When both are at their end, both blocks are left; what stands between them is not run."""
        limits, reached = TimeLimits(), []
        with limits.until(now()) as outer:
            with limits.until(now()) as inner:
                await forever()
            reached.append("between")
            await forever()

        assert (outer.expired, inner.expired) == (True, True)


class TestCancelling:
    async def test_by_somebody_else(self) -> None:
        """It goes through, also when the limit ends in the same turn."""
        for turn in range(3):
            limits = TimeLimits()

            async def wait(limits: TimeLimits = limits) -> None:
                with limits.until():
                    await forever()

            task = asyncio.create_task(wait())
            await pass_turns(2)
            limits.close()
            await pass_turns(turn)
            interrupted = task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() is interrupted

    async def test_a_cancelled_task_may_use_it(self) -> None:
        """While it cleans up, the limits it sets itself are kept."""

        async def work() -> bool:
            try:
                await forever()
            except asyncio.CancelledError:
                with TimeLimits().until(now()) as limit:
                    await forever()
                return limit.expired
            return False

        task = asyncio.create_task(work())
        await pass_turns(1)
        task.cancel()
        assert await task
        assert task.cancelling() == 1

    async def test_something_awaited_that_was_cancelled(self) -> None:
        """That is no end of the limit's."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        with pytest.raises(asyncio.CancelledError), TimeLimits().until():
            await future


class TestClosing:
    async def test_ends_all(self) -> None:
        """Those that are entered, and those that come later, whatever end they were given."""
        limits = TimeLimits()

        async def wait(end: float) -> bool:
            with limits.until(end) as limit:
                await forever()
            return limit.expired

        waiting = [asyncio.create_task(wait(end)) for end in (math.inf, now() + 3600)]
        await pass_turns(1)
        limits.close()
        assert await asyncio.gather(*waiting, wait(math.inf), wait(now() + 3600)) == [True] * 4

    async def test_what_ignored_its_end_is_ended_again(self) -> None:
        """Closing cancels it once more, closing twice does not, and nobody has cancelled the task in the end."""
        limits, ignored = TimeLimits(), 0
        with limits.until(now()) as limit:
            with suppress(asyncio.CancelledError):
                await forever()
            limits.close()
            try:
                await forever()
            finally:
                limits.close()
                await pass_turns(3)
                ignored = current().cancelling()

        assert (limit.expired, ignored, current().cancelling()) == (True, 2, 0)

    async def test_a_cancellation_of_others_between_two_of_its_own(self) -> None:
        """Who was cancelled by somebody else goes on being cancelled, however often the limit did it too."""
        limits = TimeLimits()

        async def wait() -> None:
            with limits.until(now()):
                for _ in range(2):
                    with suppress(asyncio.CancelledError):
                        await forever()
                await forever()

        task = asyncio.create_task(wait())
        while not any(limit.expired for limit in limits.entered):
            await pass_turns(1)
        await pass_turns(2)
        task.cancel()
        await pass_turns(2)
        limits.close()
        await asyncio.wait({task})
        assert (task.cancelled(), task.cancelling()) == (True, 1)

    async def test_before_whatever_is_scheduled_after_it(self) -> None:
        """The body is cancelled, and does not hear of what comes up while other things are closed in the same turn."""
        limits = TimeLimits()
        waited_for: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def wait() -> bool:
            with limits.until() as limit:
                await waited_for
            return limit.expired

        task = asyncio.create_task(wait())
        await pass_turns(1)
        limits.close()
        waited_for.set_exception(LookupError("closed"))
        assert await task

    async def test_leaves_no_timer(self, timers: list[asyncio.TimerHandle]) -> None:
        """Nothing keeps the loop, or what it holds, once all is closed."""
        limits = TimeLimits()
        with limits.until(now() + 3600):
            pass
        limits.close()

        assert [one.cancelled() for one in timers] == [True]

    async def test_leaves_no_timer_of_those_it_ended(self, timers: list[asyncio.TimerHandle]) -> None:
        """Nor does one stay that was set for what has been ended, or brought its end forward meanwhile."""
        limits = TimeLimits()

        async def wait() -> None:
            with limits.until(now() + 3600) as limit:
                await asyncio.sleep(0)
                limit.move_to(now() + 1800)
                await forever()

        task = asyncio.create_task(wait())
        await pass_turns(1)
        limits.close()
        await task
        assert [one.cancelled() for one in timers] == [True, True]


class TestTimers:
    async def test_one_for_all(self, timers: list[asyncio.TimerHandle]) -> None:
        """However many limits are entered, the loop's timer is set once, unless one ends sooner than all before."""
        limits = TimeLimits()
        start = now()
        for number in range(100):
            with limits.until(start + 3600 + number), limits.until():
                pass
        assert [one.when() for one in timers] == [start + 3600]
        with limits.until(start + 1800):
            pass
        assert [one.when() for one in timers] == [start + 3600, start + 1800]

    async def test_nothing_is_watched_when_nothing_goes_on(self, timers: list[asyncio.TimerHandle]) -> None:
        """A look that finds no limit sets no timer."""
        limits = TimeLimits()
        with limits.until(now()):
            pass
        await pass_turns(3)
        assert len(timers) == 1
        with limits.until(now()) as limit:
            await forever()
        assert limit.expired

    async def test_many_ends_are_not_looked_for_one_by_one(
        self, timers: list[asyncio.TimerHandle], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The more limits there are, the longer the time from look to look: to look at all of them takes that long."""
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 100.0)
        limits = TimeLimits()
        entered = [limits.until(100.001 + number) for number in range(1000)]
        for limit in entered:
            limit.__enter__()
        limits._check()

        assert [one.when() for one in timers] == [100.001, pytest.approx(100.005)]
        for limit in entered:
            limit.__exit__(None, None, None)
        limits.close()

    def test_outside_of_a_task(self) -> None:
        """There is nothing to cancel, and that is said at once."""
        loop = asyncio.new_event_loop()
        seen: list[Exception] = []

        def enter() -> None:
            try:
                with TimeLimits().until():
                    pass
            except RuntimeError as error:
                seen.append(error)
            loop.stop()

        loop.call_soon(enter)
        loop.run_forever()
        loop.close()
        assert "in a task" in str(seen[0])
