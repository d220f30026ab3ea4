"""The worker: leases deliveries from a store, hands them to the user's coroutine, and tells the store how it went.

Every delivery is handled at least once. It is handled more than once when a worker dies between handling and
acknowledging, or loses its lease; `Event.fingerprint` is there to notice.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from asana_webhooks.backoff import Backoff
from asana_webhooks.checks import check_count, check_seconds
from asana_webhooks.cleanup import finish
from asana_webhooks.errors import AsanaError, ConfigurationError, PayloadError, StoreError
from asana_webhooks.models import Delivery
from asana_webhooks.store.base import Lease, Store
from asana_webhooks.wire import decode_events

__all__ = ["Handler", "Worker"]

Handler = Callable[[Delivery], Awaitable[object]]
"""The user's coroutine function. Returning acknowledges the delivery; raising has it tried again later."""

_MAX_ERROR: Final = 500

_log = logging.getLogger(__name__)


class Worker:
    """Hands stored deliveries to a coroutine function, several at a time.

    ::

        async with Worker(store, handle) as worker:
            await worker.run()

    Returning from *handle* acknowledges a delivery. Raising has it tried again after a wait (the traceback is logged),
    and after *max_attempts* it becomes a dead letter with its error; so does, at once, a delivery whose body is not
    what Asana documents. While a handler runs its lease is extended. Any number of workers, in any number of
    processes, may share a store.

    Args:
        store: where deliveries are leased from.
        handle: the coroutine function; it gets a `Delivery`.
        concurrency: how many handlers run at once.
        ordered: hand out a registration's deliveries one after the other, in the order they came. A failing one holds
            up those behind it until it succeeds or becomes a dead letter. By default nothing waits for anything.
        lease: seconds a delivery is held before another worker may take it, should this one die.
        max_attempts: how often a delivery is tried.
        backoff: how long a failed delivery waits.
        poll: seconds between looks at the store while it has nothing to do.
        stop_timeout: seconds running handlers may take after `stop`; then they are cancelled and what they held is
            given back. A handler that ignores being cancelled is waited for.
        sleep: what the lease keeper sleeps with, for tests.
    """

    def __init__(
        self,
        store: Store,
        handle: Handler,
        *,
        concurrency: int = 8,
        ordered: bool = False,
        # Leases and attempts
        lease: float = 60.0,
        max_attempts: int = 10,
        backoff: Backoff | None = None,
        # Idling and stopping
        poll: float = 0.5,
        stop_timeout: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        check_count("concurrency", concurrency)
        check_count("max_attempts", max_attempts)
        check_seconds("lease", lease, zero=False)
        check_seconds("poll", poll, zero=False)
        check_seconds("stop_timeout", stop_timeout)
        self._store = store
        self._handle = handle
        self._concurrency = concurrency
        self._ordered = ordered
        self._lease = lease
        self._max_attempts = max_attempts
        self._backoff = backoff or Backoff()
        self._poll = poll
        self._stop_timeout = stop_timeout
        self._sleep = sleep
        self._held: dict[asyncio.Task[None], Lease] = {}
        self._unsettled: list[Lease] = []
        self._stopping = False
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        await self._ended.wait()

    def stop(self) -> None:
        """Ask `run` to end: nothing more is leased, running handlers may finish. Safe to call from a signal handler
        of the loop, early, late, or twice; a stopped worker stays stopped.
        """
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled or asked to `stop`.

        On `stop` running handlers may finish; on cancellation they are cancelled. Either way, what is still held at
        the end is given back to the store, as if it had not been tried. A store that fails for a while is asked again.

        Raises:
            ConfigurationError: this worker is running already, or its store is closed.
        """
        await self._work_through(until_idle=False)

    async def drain(self) -> None:
        """Work until nothing can be leased and no handler runs. Deliveries that wait for another attempt stay.

        Raises:
            StoreError: the store failed.
            ConfigurationError: this worker is running already, or its store is closed.
        """
        await self._work_through(until_idle=True)

    async def _work_through(self, *, until_idle: bool) -> None:
        if not self._ended.is_set():
            raise ConfigurationError("this worker is running already; make another one, or raise its concurrency")
        self._wake = asyncio.Event()  # anew: the next run may be in another loop
        self._ended = asyncio.Event()
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep_leases())
                try:
                    await self._lease_and_start(group, until_idle=until_idle)
                except Exception as error:  # noqa: BLE001 - raised below; the group would wrap it
                    failure = error
                await self._let_finish()
                keeper.cancel()
        finally:
            try:
                await finish(self._give_back())
            finally:
                self._ended.set()
        if failure is not None:
            raise failure

    async def _lease_and_start(self, group: asyncio.TaskGroup, *, until_idle: bool) -> None:
        while not self._stopping:
            self._wake.clear()
            free = self._concurrency - len(self._held)
            leases = await self._claim(free, patient=not until_idle) if free else ()
            for lease in leases:
                task = group.create_task(self._work(lease))
                self._held[task] = lease
                task.add_done_callback(self._let_go)
            if until_idle and not self._held:
                return
            if len(leases) < free or not free:
                await self._pause(None if not free or until_idle else self._poll)

    async def _claim(self, limit: int, *, patient: bool) -> Sequence[Lease]:
        try:
            return await self._store.claim(limit, lease=self._lease, ordered=self._ordered)
        except StoreError as error:
            if not patient:
                raise
            _log.error("nothing could be leased; trying again in %g seconds: %.200r", self._poll, str(error))
            return ()

    async def _pause(self, seconds: float | None) -> None:
        """Wait until a handler ends or the worker is stopped, *seconds* at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _let_go(self, task: "asyncio.Task[None]") -> None:
        lease = self._held.pop(task)
        if task.cancelled() or task.exception() is not None:  # perhaps before it took its first step
            self._unsettled.append(lease)
        self._wake.set()

    async def _let_finish(self) -> None:
        if self._held:
            _, late = await asyncio.wait(self._held, timeout=self._stop_timeout)
            for task in late:
                task.cancel()

    async def _give_back(self) -> None:
        unsettled, self._unsettled = self._unsettled, []
        released = await asyncio.gather(*map(self._store.release, unsettled), return_exceptions=True)
        for lease, result in zip(unsettled, released, strict=True):
            if result is True:
                _log.info("delivery %d: given back", lease.id)
            else:  # lost already, or its lease has to run out first
                _log.warning("delivery %d: could not be given back", lease.id)

    async def _keep_leases(self) -> None:
        while True:
            await self._sleep(self._lease / 3)
            await asyncio.gather(*map(self._extend, list(self._held.values())))

    async def _extend(self, lease: Lease) -> None:
        try:
            kept = await self._store.extend(lease, seconds=self._lease)
        except Exception as error:  # noqa: BLE001 - the handler goes on, and this is tried again
            _log.warning("delivery %d: its lease could not be extended: %.200r", lease.id, _shown(error))
        else:
            if not kept:
                _log.warning("delivery %d: its lease is lost, so another worker may handle it too", lease.id)

    async def _work(self, lease: Lease) -> None:
        try:
            kept = await self._settle(lease)
        except Exception as error:  # noqa: BLE001 - one delivery's trouble must not end the others
            _log.error("delivery %d: not acknowledged, so it will come again: %.200r", lease.id, _shown(error))
        else:
            if not kept:
                _log.warning("delivery %d: the lease was lost meanwhile, so it may be handled twice", lease.id)

    async def _settle(self, lease: Lease) -> bool:
        """Handle a delivery and tell the store. Return whether the lease was still ours."""
        if lease.attempt > self._max_attempts:  # the workers before us died over it
            given_up = f"given up after {self._max_attempts} attempts that ended without an answer"
            return await self._store.fail(lease, error=given_up, retry_in=None)
        try:
            delivery = _delivery(lease)
        except PayloadError as problem:
            _log.error("delivery %d: unreadable, now a dead letter: %.200r", lease.id, str(problem))
            return await self._store.fail(lease, error=f"unreadable: {problem}"[:_MAX_ERROR], retry_in=None)
        error = await self._try(delivery)
        if error is None:
            return await self._store.done(lease)
        retry_in = None if lease.attempt >= self._max_attempts else self._backoff.after(lease.attempt)
        return await self._store.fail(lease, error=error, retry_in=retry_in)

    async def _try(self, delivery: Delivery) -> str | None:
        """Run the handler; return what went wrong."""
        try:
            await self._handle(delivery)
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            return "CancelledError"  # the handler's own, from something it awaited
        except Exception as error:
            if _is_being_cancelled():  # it made something else of its cancellation; no fault of the delivery
                raise asyncio.CancelledError from error
            _log.warning("delivery %d: attempt %d failed", delivery.id, delivery.attempt, exc_info=True)
            return _described(error)
        return None


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _described(error: Exception) -> str:
    """Return what a dead letter says of *error*, even if the error cannot say it itself."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - its own code fails
        text = "(no text)"
    return f"{type(error).__name__}: {text}"[:_MAX_ERROR]


def _shown(error: Exception) -> str:
    """Return what the log says of a store's *error*: our own texts hold no secrets, others' may."""
    return str(error) if isinstance(error, AsanaError) else type(error).__name__


def _delivery(lease: Lease) -> Delivery:
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
