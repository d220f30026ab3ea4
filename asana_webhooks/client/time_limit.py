"""Time limits of a session's calls, which closing the session brings to their end.

They do what `asyncio.timeout` does, with one timer for all of a session's calls. A timer for each call, set anew when
its attempt began and cancelled when it had its answer, took 8 µs of CPU time, and this takes 1.5; a request takes 100.
"""

import asyncio
import math
from types import TracebackType
from typing import Final, Self

__all__ = ["TimeLimit", "TimeLimits"]

_LONG_PAST: Final = 0.0
_PAUSE_PER_LIMIT: Final = 5e-6
"""Seconds between two looks at all limits, for each of them. To look at one takes 0.03 µs: however many calls end one
after the other, that is less than 1 % of the time."""


class TimeLimit:
    """A block of code that is cancelled at its end, and left then as if it were done: ``expired`` tells.

    Like `asyncio.timeout` it lets the cancellations of others through. `TimeLimits.until` makes one.
    """

    __slots__ = ("_cancelling", "_expirations", "_limits", "_task", "end", "expired")

    def __init__(self, limits: "TimeLimits", end: float) -> None:
        self._limits = limits
        self._expirations = 0
        self.end = end
        """When its body is cancelled, by the event loop's clock."""
        self.expired = False
        """Whether its body was cancelled by it. Whatever the body awaited may have let that pass unheard."""

    def end_by(self, end: float) -> None:
        """End at *end*, if that is sooner."""
        if end < self.end:
            self.end = end
            self._limits.look_by(end)

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("calls of a session belong in a task, such as asyncio.run makes")
        self._task = task
        self._cancelling = task.cancelling()
        self._limits.entered.add(self)
        self._limits.look_by(self.end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._limits.entered.discard(self)
        if not self.expired:
            return False
        for _ in range(self._expirations):
            self._task.uncancel()
        # Others may have cancelled the task as well, and then it goes on being cancelled.
        return self._task.cancelling() <= self._cancelling and kind is asyncio.CancelledError

    def expire(self) -> None:
        """Cancel the body, also if it was before and has let that pass."""
        self.expired = True
        self._expirations += 1
        self._task.cancel()


class TimeLimits:
    """The time limits of one session's calls; for one event loop."""

    def __init__(self) -> None:
        self.entered: set[TimeLimit] = set()
        """Those that are not left yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._next_look = math.inf
        self._closed = False

    def until(self, end: float = math.inf) -> TimeLimit:
        """Return a limit to enter with ``with``, which ends at *end* by the event loop's clock, or when all do."""
        return TimeLimit(self, _LONG_PAST if self._closed else end)

    def close(self) -> None:
        """End all limits: those that are entered, in the loop's next turn, and whatever is entered later.

        It comes before all that is put on the loop from now on, and ends those too that have let their end pass.
        """
        if self._closed:  # who was cancelled is on the way out
            return
        self._closed = True
        if self.entered:
            asyncio.get_running_loop().call_soon(self._end_all)
        else:
            self._stop_looking()

    def look_by(self, when: float) -> None:
        """Look not later than *when* which limits are at their end."""
        if when < self._next_look:
            if self._timer is not None:
                self._timer.cancel()
            self._next_look = when
            self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        # The timer stays when a call has its answer, so most looks find nothing, once in a time limit.
        now = asyncio.get_running_loop().time()
        next_end = math.inf
        for limit in self.entered:
            if limit.expired:
                continue
            if limit.end <= now:
                limit.expire()
            elif limit.end < next_end:
                next_end = limit.end
        self._next_look = math.inf
        self.look_by(max(next_end, now + _PAUSE_PER_LIMIT * len(self.entered)))

    def _end_all(self) -> None:
        for limit in self.entered:
            limit.expire()
        self._stop_looking()

    def _stop_looking(self) -> None:
        self._next_look = math.inf
        if self._timer is not None:
            self._timer.cancel()
