"""Process one delivery: decode it, run the handler, record the result in the store."""

import asyncio
import enum
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import attrs
from attrs import field, frozen

from asana_webhooks._checks import check_seconds
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.errors import PayloadError
from asana_webhooks.models import Delivery
from asana_webhooks.store.base import Lease, Store
from asana_webhooks.wire import decode_events

__all__ = ["Backoff", "Handler", "ProcessResult", "Processor"]

Handler = Callable[[Delivery], Awaitable[object]]
"""The user's coroutine function. Returning acknowledges the delivery; raising has it tried again later."""

_MAX_ERROR: Final = 500

_log = logging.getLogger(__name__)


def _is_seconds(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    check_seconds(attribute.name, value, zero=False)


@frozen(kw_only=True)
class Backoff:
    """How long a failed delivery waits for its next attempt; times are in seconds.

    The wait after attempt n is random between half and all of ``min(longest_wait, first_wait * 2**(n-1))``.
    """

    first_wait: float = field(default=1.0, validator=_is_seconds)
    longest_wait: float = field(default=3600.0, validator=_is_seconds)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def after(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number *attempt*, counted from 1."""
        full = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))
        return full * (0.5 + self.random() / 2)


class ProcessResult(enum.StrEnum):
    """How an attempt ended: the keys of `Worker.counts`."""

    DONE = "done"
    RETRIED = "to be retried"
    DEAD = "dead letter"
    UNREADABLE = "unreadable"
    """A dead letter, too, because its body cannot be decoded."""
    LOST = "lease lost"
    STALE = "stale"
    """Not an end of its own: attempts with a stale delivery count here as well."""


@frozen(kw_only=True)
class Processor:
    """Processes leased deliveries, by the rules of a `Worker`."""

    store: Store
    handle: Handler
    attempts: int
    backoff: Backoff
    refuse_stale: bool
    count: Callable[[ProcessResult], None] = field(repr=False)

    async def process(self, lease: Lease) -> None:
        """Handle a delivery and tell the store how that ended.

        Raises:
            StoreError: the store could not be told; the delivery comes again when its lease has run out.
        """
        result, kept = await self._process(lease)
        self.count(result if kept else ProcessResult.LOST)
        if not kept:
            _log.warning("delivery %d: the lease was lost meanwhile, so it may be handled twice", lease.id)

    async def _process(self, lease: Lease) -> tuple[ProcessResult, bool]:
        """Return how it ended, and whether the lease was still ours."""
        if lease.attempt > self.attempts:  # the workers before us died over it
            error = f"given up after {self.attempts} attempts that ended without an answer"
            return ProcessResult.DEAD, await self._fail(lease, error)
        try:
            delivery = _read(lease)
        except PayloadError as problem:
            _log.error("delivery %d: unreadable, now a dead letter: %.200r", lease.id, str(problem))
            return ProcessResult.UNREADABLE, await self._fail(lease, f"unreadable: {problem}")
        if delivery.stale:
            self.count(ProcessResult.STALE)
            _log.warning("delivery %d: stale, its newest event is more than 25 hours old", lease.id)
            if self.refuse_stale:
                error = "stale: its newest event is more than 25 hours old"
                return ProcessResult.DEAD, await self._fail(lease, error)
        failure = await self._try(delivery)
        if failure is None:
            return ProcessResult.DONE, await self.store.done(lease)
        if lease.attempt >= self.attempts:
            return ProcessResult.DEAD, await self._fail(lease, failure)
        return ProcessResult.RETRIED, await self._fail(lease, failure, retry_in=self.backoff.after(lease.attempt))

    async def _fail(self, lease: Lease, error: str, *, retry_in: float | None = None) -> bool:
        return await self.store.fail(lease, error=error[:_MAX_ERROR], retry_in=retry_in)

    async def _try(self, delivery: Delivery) -> str | None:
        """Run the handler; return what went wrong."""
        try:
            await self.handle(delivery)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            return "CancelledError"  # the handler's own, from something it awaited
        except Exception as error:
            if is_being_cancelled():  # it made something else of its cancellation; no fault of the delivery
                raise asyncio.CancelledError from error
            _log.warning("delivery %d: attempt %d failed", delivery.id, delivery.attempt, exc_info=True)
            return f"{type(error).__name__}: {_text(error)}"
        return None


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - its own code fails
        return "(no text)"


def _read(lease: Lease) -> Delivery:
    return Delivery(
        id=lease.id,
        registration=lease.registration,
        webhook_gid=lease.webhook_gid,
        resource=lease.resource,
        received_at=datetime.fromtimestamp(lease.received_at, UTC),
        attempt=lease.attempt,
        events=decode_events(lease.body, lease.registration),
        body=lease.body,
    )
