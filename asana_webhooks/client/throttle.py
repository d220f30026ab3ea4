"""Rate limiting shared by a session's calls: pauses after a 429, the retry budget, and slots for requests in flight.

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
    """A pause of all calls of a session, because Asana answered 429 to one of them."""

    until: float
    """When it ends, in seconds of the policy's clock."""
    details: tuple[ErrorDetail, ...]
    """Asana's error details in the 429."""


class Throttle:
    """Rate limiting shared by one session's calls. It holds the state; `asana_webhooks.client.retry` decides.

    Args:
        policy: the session's retry policy.
        limiter: an async context manager to enter for every attempt, or ``None``.
        max_reads: how many GET requests may be in flight at once.
        max_writes: how many other requests may be in flight at once.

    Raises:
        ConfigurationError: an argument is invalid.
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
        """The rest of the retry budget."""
        self.limiter: AbstractAsyncContextManager[Any] = nullcontext() if limiter is None else limiter
        self._policy = policy
        self._pause: Pause | None = None
        self._reads = asyncio.Semaphore(check_count("max_reads", max_reads))
        self._writes = asyncio.Semaphore(check_count("max_writes", max_writes))

    def slot(self, request: Request[Any]) -> AbstractAsyncContextManager[None]:
        """Return the semaphore that limits how many requests of this kind are in flight."""
        return self._reads if request.method == "GET" else self._writes

    def pause_left(self) -> float:
        """Return the seconds left of the pause; 0 if there is none."""
        return 0.0 if self._pause is None else max(self._pause.until - self._policy.clock(), 0.0)

    def paused(self, waited_out: Pause | None = None) -> Outcome | None:
        """Return the outcome for a call that must not send now because of a pause; ``None`` if it may send.

        Args:
            waited_out: a pause the call has already waited for; it no longer applies, even if the clock differs.
        """
        if self._pause is None or self._pause is waited_out or not (left := self.pause_left()):
            return None
        return Outcome(
            kind="paused",
            status=429,
            retry_after=left,
            details=self._pause.details,
            problem="Asana answered 429 to another call of this session",
        )

    def record(self, decision: Decision, outcome: Outcome) -> None:
        """Charge the cost of *decision* and start its pause, unless the current pause is longer."""
        self.budget = min(self.budget - decision.cost, self._policy.budget)
        if decision.pause > 0:
            until = self._policy.clock() + decision.pause
            if self._pause is None or until > self._pause.until:
                self._pause = Pause(until, outcome.details)

    async def wait(self, decision: Decision) -> Pause | None:
        """Wait before a retry; return the current pause if it ends within that wait.

        On cancellation there is no retry, so its cost is returned to the budget.
        """
        waited_out = None if self.pause_left() > decision.wait else self._pause
        try:
            await self._policy.sleep(decision.wait)
        except asyncio.CancelledError:
            self.budget = min(self.budget + decision.cost, self._policy.budget)
            raise
        return waited_out
