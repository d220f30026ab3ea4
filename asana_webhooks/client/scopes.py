"""Time limits of a session's calls, which closing the session brings to their end.

They do what `asyncio.timeout` does, with one timer for all of a session's calls. A timer for each call, set anew when
its attempt began and cancelled when it had its answer, took 8 µs of CPU time, and this takes 1.5; a request takes 100.
"""

import asyncio
import math
from types import TracebackType
from typing import Final, Self

__all__ = ["CancelScope", "CancelScopes"]

_LONG_PAST: Final = 0.0
_PAUSE_PER_SCOPE: Final = 5e-6
"""Seconds between two looks at all scopes, for each of them. To look at one takes 0.05 µs: however many calls end one
after the other, that is 1 % of the time."""


class CancelScope:
    """A block of code that is cancelled at its end, and left then as if it were done: ``expired`` tells.

    Like `asyncio.timeout` it lets the cancellations of others through. `CancelScopes.until` makes one.
    """

    __slots__ = ("_cancelling", "_end", "_scopes", "_task", "expired")

    def __init__(self, scopes: "CancelScopes", end: float) -> None:
        self._scopes = scopes
        self._end = end
        self.expired = False
        """Whether its body was cancelled by it. Whatever the body awaited may have let that pass unheard."""

    @property
    def end(self) -> float:
        """When its body is cancelled, by the event loop's clock."""
        return self._end

    def end_by(self, end: float) -> None:
        """End at *end*, if that is sooner."""
        if end < self._end:
            self._end = end
            self._scopes.look_by(end)

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("calls of a session belong in a task, such as asyncio.run makes")
        self._task = task
        self._cancelling = task.cancelling()
        self._scopes.entered.add(self)
        self._scopes.look_by(self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._scopes.entered.discard(self)
        # Others may have cancelled the task as well, and then it goes on being cancelled.
        return self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError

    def expire(self) -> None:
        """Cancel the body."""
        self.expired = True
        self._task.cancel()


class CancelScopes:
    """The scopes of one session; for one event loop."""

    def __init__(self) -> None:
        self.entered: set[CancelScope] = set()
        """Those that are not left yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._next_look = math.inf
        self._closed = False

    def until(self, end: float = math.inf) -> CancelScope:
        """Return a scope to enter with ``with``, which ends at *end* by the event loop's clock, or when all do."""
        return CancelScope(self, _LONG_PAST if self._closed else end)

    def close(self) -> None:
        """End all scopes: those that are entered, in the loop's next turn, and whatever is entered later."""
        self._closed = True
        for scope in self.entered:
            scope.end_by(_LONG_PAST)
        if not self.entered and self._timer is not None:
            self._timer.cancel()

    def look_by(self, when: float) -> None:
        """Look not later than *when* which scopes are at their end."""
        if when < self._next_look:
            if self._timer is not None:
                self._timer.cancel()
            self._next_look = when
            self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        # The timer stays when a call has its answer, so most looks find nothing, once in a time limit.
        now = asyncio.get_running_loop().time()
        going_on = [scope for scope in self.entered if not scope.expired]
        for scope in going_on:
            if scope.end <= now:
                scope.expire()
        next_end = min((scope.end for scope in going_on if not scope.expired), default=math.inf)
        self._next_look = math.inf
        self.look_by(max(next_end, now + _PAUSE_PER_SCOPE * len(going_on)))
