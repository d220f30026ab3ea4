"""What the calls of a session share: pauses after a 429, the retry budget, and slots for requests in flight.

Source: https://developers.asana.com/docs/rate-limits
"""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from attrs import frozen

from asana_webhooks._checks import check_count
from asana_webhooks.client.requests import Request
from asana_webhooks.client.retry import Decision, Outcome, RetryPolicy
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.wire import ErrorDetail

__all__ = ["Pause", "Throttle"]


@frozen(eq=False)
class Pause:
    """A time in which no call of the session may send, because Asana answered 429 to one of them."""

    until: float
    """By the policy's clock, in seconds."""
    details: tuple[ErrorDetail, ...]
    """What Asana said with the 429."""


class Throttle:
    """What the calls of one session share. What follows from it is decided in `asana_webhooks.client.retry`.

    Args:
        policy: the session's.
        limiter: what to enter for every attempt, or ``None``.
        max_reads: how many GET requests may be in flight at once.
        max_writes: how many other requests may be.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        limiter: AbstractAsyncContextManager[Any] | None,
        max_reads: int,
        max_writes: int,
    ) -> None:
        if limiter is not None and not isinstance(limiter, AbstractAsyncContextManager):
            raise ConfigurationError(f"limiter must be an async context manager, not {type(limiter).__name__}")
        self.budget = policy.budget
        """What is left for retries."""
        self.limiter: AbstractAsyncContextManager[Any] = nullcontext() if limiter is None else limiter
        self._policy = policy
        self._pause: Pause | None = None
        self._reads = asyncio.Semaphore(check_count("max_reads", max_reads))
        self._writes = asyncio.Semaphore(check_count("max_writes", max_writes))

    def slot(self, request: Request[Any]) -> AbstractAsyncContextManager[None]:
        """Return what to enter so that no more requests of this kind are in flight than may be."""
        return self._reads if request.method == "GET" else self._writes

    def pause_left(self) -> float:
        """Return the seconds that are left of the pause; 0 if there is none."""
        return 0.0 if self._pause is None else max(self._pause.until - self._policy.clock(), 0.0)

    def paused(self, waited_out: Pause | None = None) -> Outcome | None:
        """Return what comes of a call that wants to send now: ``None`` if it may.

        Args:
            waited_out: a pause that the call has waited for already; it holds only others, whatever the clock says.
        """
        left = self.pause_left()
        if self._pause is None or self._pause is waited_out or not left:
            return None
        return Outcome(
            kind="paused",
            status=429,
            retry_after=left,
            details=self._pause.details,
            problem="Asana answered 429 to another call of this session",
        )

    def record(self, decision: Decision, outcome: Outcome) -> None:
        """Take what *decision* costs, and pause the session if it says so; a longer pause that began before stands."""
        self.budget = min(self.budget - decision.cost, self._policy.budget)
        if decision.pause > 0:
            until = self._policy.clock() + decision.pause
            if self._pause is None or until > self._pause.until:
                self._pause = Pause(until, outcome.details)

    async def wait(self, decision: Decision) -> Pause | None:
        """Wait before a call is sent again, and return the pause that is over then, if there was one.

        If that is cancelled, the call is not sent again, and what that would have cost is given back.
        """
        waited_out = None if self.pause_left() > decision.wait else self._pause
        try:
            await self._policy.sleep(decision.wait)
        except asyncio.CancelledError:
            self.budget = min(self.budget + decision.cost, self._policy.budget)
            raise
        return waited_out
