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
"""Your coroutine function. Returning acknowledges the delivery; raising retries it later."""

_MAX_ERROR: Final = 500

_log = logging.getLogger(__name__)


def _is_seconds(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    check_seconds(attribute.name, value, zero=False)


@frozen(kw_only=True)
class Backoff:
    """The delay in seconds before a failed delivery is retried.

    After attempt n it is random, between half and all of ``min(longest_wait, first_wait * 2**(n-1))``.
    """

    first_wait: float = field(default=1.0, validator=_is_seconds)
    longest_wait: float = field(default=3600.0, validator=_is_seconds)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def after(self, attempt: int) -> float:
        """Return the delay in seconds after attempt number *attempt*, counted from 1."""
        full = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))
        return full * (0.5 + self.random() / 2)


class ProcessResult(enum.StrEnum):
    """The result of an attempt. The values are the keys of `Worker.counts`."""

    DONE = "done"
    RETRIED = "to be retried"
    DEAD = "dead letter"
    UNREADABLE = "unreadable"
    """Also a dead letter: the body cannot be decoded."""
    LOST = "lease lost"
    STALE = "stale"
    """Counted in addition to another result, for each attempt with a `Delivery.stale` delivery."""


@frozen(kw_only=True)
class Processor:
    """Processes leased deliveries with the options of a `Worker`."""

    store: Store
    handle: Handler
    attempts: int
    backoff: Backoff
    refuse_stale: bool
    count: Callable[[ProcessResult], None] = field(repr=False)

    async def process(self, lease: Lease) -> None:
        """Handle a delivery and record the result in the store.

        Raises:
            StoreError: recording the result failed; the delivery is handled again after its lease expires.
        """
        result, kept = await self._process(lease)
        self.count(result if kept else ProcessResult.LOST)
        if not kept:
            _log.warning("delivery %d: lease lost before the result was recorded; it may be handled twice", lease.id)

    async def _process(self, lease: Lease) -> tuple[ProcessResult, bool]:
        """Return the result, and whether the lease was still held when it was recorded."""
        if lease.attempt > self.attempts:  # usually a worker died before recording a result
            error = f"attempts exhausted: {lease.attempt - 1} made, {self.attempts} allowed; a worker may have died"
            return ProcessResult.DEAD, await self._fail(lease, error)
        try:
            delivery = _read(lease)
        except PayloadError as problem:
            _log.error("delivery %d: unreadable; making it a dead letter: %.200r", lease.id, str(problem))
            return ProcessResult.UNREADABLE, await self._fail(lease, f"unreadable: {problem}")
        if delivery.stale:
            self.count(ProcessResult.STALE)
            if self.refuse_stale:
                _log.warning(
                    "delivery %d: stale: its newest event is more than 25 hours old; making it a dead letter", lease.id
                )
                return ProcessResult.DEAD, await self._fail(lease, "stale: its newest event is more than 25 hours old")
            _log.warning("delivery %d: stale: its newest event is more than 25 hours old; handling it anyway", lease.id)
        failure = await self._handle(delivery)
        if failure is None:
            return ProcessResult.DONE, await self.store.done(lease)
        if lease.attempt >= self.attempts:
            return ProcessResult.DEAD, await self._fail(lease, failure)
        return ProcessResult.RETRIED, await self._fail(lease, failure, retry_in=self.backoff.after(lease.attempt))

    async def _fail(self, lease: Lease, error: str, *, retry_in: float | None = None) -> bool:
        return await self.store.fail(lease, error=error[:_MAX_ERROR], retry_in=retry_in)

    async def _handle(self, delivery: Delivery) -> str | None:
        """Run the handler. Return its error as text, or ``None`` if it returned."""
        try:
            await self.handle(delivery)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            return "CancelledError"  # from something the handler awaited, so an ordinary failure
        except Exception as error:
            if is_being_cancelled():  # the handler replaced the cancellation by another error
                raise asyncio.CancelledError from error
            _log.warning(
                "delivery %d: attempt %d of %d failed", delivery.id, delivery.attempt, self.attempts, exc_info=True
            )
            return f"{type(error).__name__}: {_text(error)}"
        return None


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - its __str__ may raise anything
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
