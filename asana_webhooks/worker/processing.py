"""Process one delivery: decode it, run the handler, record the result in the store."""

import asyncio
import enum
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import attrs
from attrs import define, field, frozen

from asana_webhooks._checks import check_awaitable, check_seconds
from asana_webhooks.errors import PayloadError, PermanentFailure, UnusableHandlerError
from asana_webhooks.models import Delivery
from asana_webhooks.store.base import Lease, Store
from asana_webhooks.wire import decode_delivery
from asana_webhooks.worker.router import EventRouter

__all__ = ["Backoff", "Handler", "Held", "ProcessResult", "Processor", "StaleWarning", "name_of"]

Handler = Callable[[Delivery], Awaitable[object]]
"""Your coroutine function. Returning acknowledges the delivery; raising retries it later."""

_MAX_ERROR: Final = 500
_STALE_EVERY: Final = 60.0
"""Seconds between warnings of stale deliveries."""

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
    """Also a dead letter: the body is not JSON with a list of events."""
    LOST = "lease lost"
    STALE = "stale"
    """Counted in addition to another result, for each attempt with a `Delivery.stale` delivery."""


@define(eq=False)
class Held:
    """A delivery that a worker holds."""

    lease: Lease
    """The latest one: the worker may have claimed the delivery again while its handler runs."""
    started_at: float
    """When its handler started, or is about to, by the monotonic clock in seconds."""
    handling: bool
    """Whether its handler runs or is about to start."""
    warned: bool = False
    """Whether a warning has said that its handler is slow."""
    done: set[int] = field(init=False)
    """The indices of the events that are done."""
    task: "asyncio.Task[None]" = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.done = set(self.lease.done)


@define
class StaleWarning:
    """Warns of stale deliveries: of the first one at once, then at most once a minute, with their number."""

    outcome: str
    """Whether they are refused or handled."""
    _number: int = 0
    _latest: str = ""
    _warned_at: float | None = None

    def add(self, lease: Lease) -> None:
        """Count a delivery, and warn if that is due."""
        self._number += 1
        self._latest = name_of(lease)
        self.warn()

    def warn(self) -> None:
        """Warn of what no warning has counted yet, if the last warning is a minute old."""
        if self._number and (self._warned_at is None or time.monotonic() - self._warned_at >= _STALE_EVERY):
            self._warned_at = time.monotonic()
            self.flush()

    def flush(self) -> None:
        """Warn of the deliveries that no warning has counted yet."""
        if self._number:
            _log.warning(
                "stale deliveries: %d since the last warning, the latest is %.150s; the newest event of each is "
                "more than 25 hours old; %r",
                *(self._number, self._latest, self.outcome),
            )
            self._number = 0


@frozen(kw_only=True)
class Processor:
    """Processes leased deliveries with the options of a `Worker`."""

    store: Store
    handle: Handler
    attempts: int
    backoff: Backoff
    handler_timeout: float | None
    refuse_stale: bool
    counts: dict[str, int] = field(repr=False)
    """The number of attempts by `ProcessResult`."""
    on_handled: Callable[[Held], None] = field(repr=False)
    """Called when the handler has ended, before its result is recorded."""
    end_run: Callable[[BaseException], None] = field(repr=False)
    """Ends the worker's run, which raises the given error."""
    is_interrupted: Callable[[], bool] = field(repr=False)
    """Whether the worker has cancelled the handlers, or is being cancelled with them. A handler's task does not know:
    `asyncio.TaskGroup` leaves it marked as being cancelled when a child fails (Python 3.11 and 3.12)."""
    stale: StaleWarning = field(repr=False)

    async def process(self, held: Held) -> None:
        """Handle a delivery and record the result in the store.

        Raises:
            StoreError: recording the result failed; the delivery is handled again after its lease expires.
        """
        result, kept = await self._process(held)
        self.counts[result if kept else ProcessResult.LOST] += 1
        if not kept:
            text = "%.150s: lease lost before the result was recorded; it may be handled twice"
            _log.warning(text, name_of(held.lease))

    async def _process(self, held: Held) -> tuple[ProcessResult, bool]:
        """Return the result, and whether the lease was still held when it was recorded."""
        lease = held.lease
        if lease.attempt > self.attempts:  # usually a worker died before recording a result
            error = f"attempts exhausted: {lease.attempt - 1} made, {self.attempts} allowed; a worker may have died"
            _log.error("%.150s: making it a dead letter: %r", name_of(lease), error)
            return ProcessResult.DEAD, await self._fail(held, error)
        try:
            delivery = _read(lease)
        except PayloadError as problem:
            text = "%.150s: unreadable; making it a dead letter: %.200r"
            _log.error(text, name_of(lease), str(problem))
            return ProcessResult.UNREADABLE, await self._fail(held, f"unreadable: {problem}")
        if delivery.unreadable and delivery.attempt == 1:
            _log_unreadable(lease, delivery)
        if delivery.stale:
            self.counts[ProcessResult.STALE] += 1
            self.stale.add(lease)
            if self.refuse_stale:
                return ProcessResult.DEAD, await self._fail(held, "stale: its newest event is more than 25 hours old")
        failure = await self._handle(delivery, held.done)
        if failure is None or not _ends_run(failure):  # otherwise the slot stays taken, so that no more is claimed
            self.on_handled(held)
        if failure is None:
            return ProcessResult.DONE, await self.store.ack(held.lease)
        return await self._record_failure(delivery, held, failure)

    async def _record_failure(
        self, delivery: Delivery, held: Held, failure: BaseException
    ) -> tuple[ProcessResult, bool]:
        attempt = held.lease.attempt
        is_last = attempt >= self.attempts or _is_permanent(failure)
        try:
            _log.log(
                logging.ERROR if is_last else logging.WARNING,
                "%.150s: attempt %d of %d failed; " + ("dead letter" if is_last else "retrying"),
                *(name_of(held.lease), attempt, self.attempts),
                exc_info=failure,
            )
            error = _describe(failure)
            if self._router is not None:
                error = _name_undone(delivery, held.done) + error
            if is_last:
                return ProcessResult.DEAD, await self._fail(held, error)
            return ProcessResult.RETRIED, await self._fail(held, error, retry_in=self.backoff.after(attempt))
        finally:  # also when the program's logging or the store fails
            if _ends_run(failure):
                self.end_run(failure)

    async def _fail(self, held: Held, error: str, *, retry_in: float | None = None) -> bool:
        return await self.store.fail(held.lease, error=error[:_MAX_ERROR], retry_in=retry_in, done=held.done)

    @property
    def _router(self) -> EventRouter | None:
        """The handler, if it is a router itself, so that it is known which events are done."""
        is_router = type(self.handle).__call__ is EventRouter.__call__
        return self.handle if is_router and isinstance(self.handle, EventRouter) else None

    async def _handle(self, delivery: Delivery, done: set[int]) -> BaseException | None:
        """Run the handler. Return what it raised, or ``None`` if it returned.

        Everything is caught in the handler's task: asyncio stops the event loop when a task ends in `SystemExit`.

        Raises:
            CancelledError: the worker cancelled the handler, or cannot use it; the attempt does not count.
        """
        try:
            router = self._router
            result = check_awaitable(self.handle(delivery) if router is None else router.handle_events(delivery, done))
            await (result if self.handler_timeout is None else _within(self.handler_timeout, result))
        except UnusableHandlerError as error:
            self.end_run(error)
            raise asyncio.CancelledError from error
        except GeneratorExit as error:
            return error  # raised by the handler; or Python closes this coroutine, and drops the result
        except BaseException as error:  # every result is recorded
            # The handler may have replaced the cancellation by another error. An exit counts all the same: one in a
            # task group of the handler stops the event loop, and all tasks are cancelled before it arrives here.
            if self.is_interrupted() and not _ends_run(error):
                raise asyncio.CancelledError from error
            return error
        return None


async def _within(seconds: float, result: Awaitable[object]) -> None:
    """Await a handler. After *seconds*, cancel it, and raise `TimeoutError` even if it then returns."""
    cause: Exception | None = None
    try:
        async with asyncio.timeout(seconds) as limit:
            await result
    except Exception as error:
        if not limit.expired():
            raise
        cause = error
    if limit.expired():
        raise TimeoutError(f"the handler took longer than {seconds:g} seconds (handler_timeout)") from cause


def _ends_run(failure: BaseException) -> bool:
    """Return whether the run must end and raise *failure*, such as `SystemExit`."""
    return not isinstance(failure, (Exception, asyncio.CancelledError))


def _is_permanent(failure: BaseException) -> bool:
    """Return whether *failure* is a `PermanentFailure`, or a group of nothing else."""
    if isinstance(failure, BaseExceptionGroup):
        return all(map(_is_permanent, failure.exceptions))
    return isinstance(failure, PermanentFailure)


def name_of(lease: Lease) -> str:
    """Return how logs name a delivery: ``delivery 7 of webhook '123' (label 'tenant-a')``, at most 150 characters."""
    label = f" (label {lease.label!r:.40})" if lease.label else ""
    return f"delivery {lease.id} of webhook {lease.webhook_gid!r:.40}{label}"


def _describe(failure: BaseException) -> str:
    """Return the text of a failure; for a group also the texts of its members."""
    try:
        if isinstance(failure, BaseExceptionGroup):
            text = f"{failure.message}: {'; '.join(map(_describe, failure.exceptions))}"
        else:
            text = str(failure)
    except Exception:  # noqa: BLE001 - its __str__ may raise anything
        text = "(no text)"
    return f"{type(failure).__name__}: {text}" if text else type(failure).__name__


def _name_undone(delivery: Delivery, done: set[int]) -> str:
    """Return which events are not done; for a delivery with one event, nothing."""
    number = len(delivery.events) + len(delivery.unreadable)
    undone = [str(index) for index in range(number) if index not in done]
    named = ", ".join(undone[:10]) + ", …" * (len(undone) > 10)
    return f"{len(undone)} of {number} events not done ({named}): " if number > 1 else ""


def _log_unreadable(lease: Lease, delivery: Delivery) -> None:
    bad, good = len(delivery.unreadable), len(delivery.events)
    problems = "; ".join(one.problem for one in delivery.unreadable)
    text = "%.150s: %d of %d events are unreadable; the handler gets them as delivery.unreadable: %.500s"
    _log.error(text, name_of(lease), bad, bad + good, problems)


def _read(lease: Lease) -> Delivery:
    parsed = decode_delivery(lease.body)
    return Delivery(
        id=lease.id,
        registration=lease.registration,
        label=lease.label,
        webhook_gid=lease.webhook_gid,
        resource=lease.resource,
        received_at=datetime.fromtimestamp(lease.received_at, UTC),
        attempt=lease.attempt,
        events=parsed.events,
        unreadable=parsed.unreadable,
        done=lease.done,
        body=lease.body,
    )
