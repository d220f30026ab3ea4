"""What keeps the calls of a session calm together: pauses, a budget of repetitions, and turns.

Source: https://developers.asana.com/docs/rate-limits
"""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from asana_webhooks._checks import check_count
from asana_webhooks.client.call import Call
from asana_webhooks.client.gate import Gate
from asana_webhooks.client.requests import Request
from asana_webhooks.client.retry import Outcome, RetryPolicy, Verdict
from asana_webhooks.errors import ConfigurationError

__all__ = ["Calm"]


class Calm:
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
        self.gate = Gate(policy.clock)
        self.budget = policy.budget
        """What is left for repetitions."""
        self.limiter: AbstractAsyncContextManager[Any] = nullcontext() if limiter is None else limiter
        self._policy = policy
        self._reads = asyncio.Semaphore(check_count("max_reads", max_reads))
        self._writes = asyncio.Semaphore(check_count("max_writes", max_writes))

    def turn(self, request: Request[Any]) -> AbstractAsyncContextManager[None]:
        """Return what to enter so that no more requests of this kind are in flight than may be."""
        return self._reads if request.method == "GET" else self._writes

    def settle(self, decision: Verdict, outcome: Outcome) -> None:
        """Let a verdict cost what it costs, and shut the gate if it says so."""
        self.budget = min(self.budget - decision.cost, self._policy.budget)
        if decision.pause:
            self.gate.shut(decision.pause, outcome)

    async def wait(self, call: Call, decision: Verdict) -> None:
        """Wait before *call* is sent again; if that is cancelled, what sending again costs is given back."""
        sat_out = self.gate.sat_out(decision.wait)
        try:
            await self._policy.sleep(decision.wait)
        except asyncio.CancelledError:
            self.budget = min(self.budget + decision.cost, self._policy.budget)
            raise
        call.waited_for = sat_out
