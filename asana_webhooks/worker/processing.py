"""What becomes of one leased delivery: it is read and handled, and the store is told how that went."""

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from attrs import field, frozen

from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.errors import PayloadError
from asana_webhooks.models import Delivery
from asana_webhooks.store.base import Lease, Store
from asana_webhooks.wire import decode_events
from asana_webhooks.worker.backoff import Backoff

__all__ = ["Handler", "Settled", "Settler"]

Handler = Callable[[Delivery], Awaitable[object]]
"""The user's coroutine function. Returning acknowledges the delivery; raising has it tried again later."""

_MAX_ERROR: Final = 500

_log = logging.getLogger(__name__)


class Settled(enum.StrEnum):
    """How an attempt ended: the keys of `Worker.counts`."""

    DONE = "done"
    RETRIED = "to be retried"
    DEAD = "dead letter"
    UNREADABLE = "unreadable"
    """A dead letter, too, because nothing can be made of it."""
    LOST = "lease lost"
    STALE = "stale"
    """No end of its own: attempts with a stale delivery count here besides."""


@frozen(kw_only=True)
class Settler:
    """Settles one lease after the other, by the rules of a `Worker`."""

    store: Store
    handle: Handler
    attempts: int
    backoff: Backoff
    refuse_stale: bool
    count: Callable[[Settled], None] = field(repr=False)

    async def settle(self, lease: Lease) -> None:
        """Handle a delivery and tell the store.

        Raises:
            StoreError: the store could not be told; the delivery comes again when its lease has run out.
        """
        end, kept = await self._settle(lease)
        self.count(end if kept else Settled.LOST)
        if not kept:
            _log.warning("delivery %d: the lease was lost meanwhile, so it may be handled twice", lease.id)

    async def _settle(self, lease: Lease) -> tuple[Settled, bool]:
        """Return how it ended, and whether the lease was still ours."""
        if lease.attempt > self.attempts:  # the workers before us died over it
            given_up = f"given up after {self.attempts} attempts that ended without an answer"
            return Settled.DEAD, await self.store.fail(lease, error=given_up, retry_in=None)
        try:
            delivery = _read(lease)
        except PayloadError as problem:
            _log.error("delivery %d: unreadable, now a dead letter: %.200r", lease.id, str(problem))
            return Settled.UNREADABLE, await self._bury(lease, f"unreadable: {problem}")
        if delivery.stale:
            self.count(Settled.STALE)
            _log.warning("delivery %d: stale, its newest event is more than 25 hours old", lease.id)
            if self.refuse_stale:
                return Settled.DEAD, await self._bury(lease, "stale: its newest event is more than 25 hours old")
        error = await self._try(delivery)
        if error is None:
            return Settled.DONE, await self.store.done(lease)
        if lease.attempt >= self.attempts:
            return Settled.DEAD, await self._bury(lease, error)
        retry_in = self.backoff.after(lease.attempt)
        return Settled.RETRIED, await self.store.fail(lease, error=error, retry_in=retry_in)

    async def _bury(self, lease: Lease, error: str) -> bool:
        return await self.store.fail(lease, error=error[:_MAX_ERROR], retry_in=None)

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
            return _described(error)
        return None


def _described(error: Exception) -> str:
    """Return what a dead letter says of *error*, even if the error cannot say it itself."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - its own code fails
        text = "(no text)"
    return f"{type(error).__name__}: {text}"[:_MAX_ERROR]


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
