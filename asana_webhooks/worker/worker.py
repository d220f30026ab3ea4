"""The worker: claims deliveries from a store, passes them to your coroutine function, and records the results.

Every delivery is handled at least once. It is handled again if a worker dies before acknowledging it, or if another
worker claims it after its lease has expired. Use `Event.fingerprint` to detect repeated events.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Final, Literal, Self, TypeVar, cast

from attrs import frozen

from asana_webhooks._checks import check_count, check_handler, check_seconds, check_store, is_store
from asana_webhooks._tasks import finish, is_being_cancelled, stop_on_signals
from asana_webhooks.errors import (
    ConfigurationError,
    HandlerExitError,
    StoreError,
    StoreUnavailableError,
    describe,
)
from asana_webhooks.store.base import Lease, Store
from asana_webhooks.worker.processing import Backoff, Handler, Held, Processor, ProcessResult, StaleWarning, name_of
from asana_webhooks.worker.retention import Retention

__all__ = ["Worker", "WorkerHealth"]

T = TypeVar("T")

_RETENTION: Final = Retention()

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class WorkerHealth:
    """The health of a worker, for a liveness probe."""

    running: bool
    """Whether `Worker.run` or `Worker.drain` is running; also while it stops."""
    handling: int
    """How many handlers are running."""
    oldest_attempt_seconds: float | None
    """Seconds since the oldest of them started; ``None`` if none is running."""
    last_claim_at: float | None
    """When the store last answered a claim, even without deliveries, in seconds since the epoch; ``None`` before that.
    The worker does not claim while *concurrency* handlers are running, or while a delivery runs alone."""


class Worker:
    """Passes stored deliveries to a coroutine function, several at a time.

    ::

        async with Worker(store, handle) as worker:
            await worker.run()

    Returning from *handle* acknowledges a delivery. Raising logs the traceback and retries the delivery after a
    backoff. After *attempts* attempts it becomes a dead letter with its error, which is logged at ERROR; after a
    `PermanentFailure`, at once. So does a delivery whose body is not JSON with a list of events. If *handle* is an
    `EventRouter`, only the events that are not done are retried. The worker extends the lease while a handler runs,
    and warns once when it has run for three leases. A delivery whose last two leases expired may have killed its
    process: it runs with no other beside it. Any number of workers, in any number of processes, may share a store. A
    running worker also purges according to *retention*.

    Args:
        store: the store to claim deliveries from.
        handle: the coroutine function to call with each `Delivery`, or another callable that returns an awaitable.
        concurrency: the maximum number of handlers that run at once.
        ordered: handle a webhook's deliveries one at a time, in order of arrival. A failing delivery blocks the
            later ones until it succeeds or becomes a dead letter. By default deliveries do not wait for each other.
        on_dead: with *ordered*, how to treat a webhook's later deliveries after a dead letter. ``"skip"`` handles
            them; ``"halt"`` blocks them until the dead letter is requeued, discarded or purged.
        refuse_stale: make a dead letter of each `Delivery.stale` delivery, unhandled. Needs a correct system clock.
        lease: seconds after which another worker may claim a delivery if this worker dies.
        attempts: the maximum number of attempts for a delivery.
        backoff: the delay before a failed delivery is retried; a default `Backoff` if ``None``.
        handler_timeout: seconds after which a handler is cancelled and its attempt has failed; ``None``: no limit.
        poll: seconds between claims while the store has nothing to claim, and before a failed claim is retried.
        retention: how long the store keeps what is finished; with ``None`` this worker purges nothing.
        stop_timeout: seconds that running handlers may take after `stop`. Then they are cancelled and their deliveries
            released. The worker waits for a handler that ignores cancellation.

    Raises:
        ConfigurationError: *store* is not a store, *handle* is not async or takes other arguments, or an option is
            invalid.
    """

    def __init__(
        self,
        store: Store,
        handle: Handler,
        *,
        concurrency: int = 8,
        ordered: bool = False,
        on_dead: Literal["skip", "halt"] = "skip",
        refuse_stale: bool = False,
        # Leases and attempts
        lease: float = 60.0,
        attempts: int = 10,
        backoff: Backoff | None = None,
        handler_timeout: float | None = None,
        # Idling, purging and stopping
        poll: float = 0.5,
        retention: Retention | None = _RETENTION,
        stop_timeout: float = 8.0,
    ) -> None:
        if is_store(handle) and not is_store(store):
            raise ConfigurationError("store and handler are swapped: write Worker(store, handle)")
        check_store(store)
        check_handler("handle", handle, "delivery")
        check_count("concurrency", concurrency)
        check_count("attempts", attempts)
        check_seconds("lease", lease, zero=False)
        check_seconds("poll", poll, zero=False)
        check_seconds("stop_timeout", stop_timeout)
        if handler_timeout is not None:
            check_seconds("handler_timeout", handler_timeout, zero=False)
        if on_dead not in {"skip", "halt"} or (on_dead == "halt" and not ordered):
            raise ConfigurationError("on_dead must be 'skip', or 'halt' together with ordered=True")
        self._store = store
        self._concurrency = concurrency
        self._ordered = ordered
        self._halt = on_dead == "halt"
        self._lease = lease
        self._poll = poll
        self._retention = retention
        self._stop_timeout = stop_timeout
        counts: dict[str, int] = dict.fromkeys(ProcessResult, 0)
        self._counts = MappingProxyType(counts)
        self._processor = Processor(
            store=store,
            handle=handle,
            attempts=attempts,
            backoff=backoff or Backoff(),
            handler_timeout=handler_timeout,
            refuse_stale=refuse_stale,
            counts=counts,
            on_handled=self._free_slot,
            end_run=self._end_run,
            is_interrupted=self._is_interrupted,
            stale=StaleWarning("refused" if refuse_stale else "handled anyway"),
        )
        self._held: dict[int, Held] = {}
        """The deliveries whose results are not recorded, by id, oldest first."""
        self._extended_at = 0.0
        """When the last extension of all leases began, by the monotonic clock in seconds."""
        self._to_release: list[Lease] = []
        self._last_claim_at: float | None = None
        self._stopping = False
        self._failure: BaseException | None = None
        """Ends the current run, which raises it."""
        self._cancelled_late = False
        """Whether this run has cancelled the handlers that did not end in time."""
        self._task: asyncio.Task[object] | None = None
        """The task of the current run."""
        self._cancelling = 0
        """How often it had been cancelled before the run."""
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await self._ended.wait()

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of attempts by result since this worker was created, for metrics. A live view.

        The keys are ``done``, ``to be retried``, ``dead letter``, ``unreadable`` (also a dead letter), ``lease lost``
        and ``stale`` (in addition to another key, for a `Delivery.stale` delivery). Released attempts are not counted.
        """
        return self._counts

    def health(self) -> WorkerHealth:
        """Return the health of this worker. This does not ask the store."""
        started = [held.started_at for held in self._held.values() if held.handling]
        return WorkerHealth(
            running=not self._ended.is_set(),
            handling=len(started),
            oldest_attempt_seconds=time.monotonic() - min(started) if started else None,
            last_claim_at=self._last_claim_at,
        )

    def stop(self) -> None:
        """Stop `run`: claim no more deliveries and let running handlers finish.

        Safe in a signal handler of the event loop, before `run`, and repeatedly. A stopped worker stays stopped.
        """
        self._stopping = True
        self._wake.set()

    def _end_run(self, failure: BaseException) -> None:
        """End the current run as `stop` does. It then raises the first *failure*."""
        if self._failure is None:
            self._failure = failure
        self._wake.set()

    def _is_interrupted(self) -> bool:
        is_cancelled = self._task is not None and self._task.cancelling() > self._cancelling
        return is_cancelled or self._cancelled_late

    async def run(self, *, signals: Iterable[int] = ()) -> None:
        """Handle deliveries until `stop` is called, one of *signals* arrives, or this call is cancelled.

        ::

            await worker.run(signals=(signal.SIGINT, signal.SIGTERM))

        After `stop` running handlers may finish; cancellation cancels them. Deliveries still held at the end are
        released, and the interrupted attempts do not count. When the store fails, claiming is retried.

        Args:
            signals: the signals that call `stop` while this runs. Afterwards their earlier handlers are restored. Those
                that were added with ``loop.add_signal_handler`` are removed instead.

        Raises:
            HandlerExitError: a handler raised `SystemExit`. Its attempt has failed, and the worker stopped.
            BaseException: a handler raised an exception, other than `asyncio.CancelledError`, that is not an
                `Exception`, such as `KeyboardInterrupt`. Its attempt has failed, and the worker stopped.
            UnusableHandlerError: the handler returned something that cannot be awaited.
            ConfigurationError: this worker is already running, or its store is closed. Another run has one of
                *signals*, or this is not the main thread.
        """
        with stop_on_signals(signals, self.stop):
            await self._run(until_idle=False)

    async def drain(self) -> None:
        """Handle deliveries until none can be claimed and no handler runs. It does not wait for delayed retries.

        Raises:
            StoreError: claiming deliveries failed.
            HandlerExitError: a handler raised `SystemExit`. Other exceptions of handlers are raised as by `run`.
            UnusableHandlerError: the handler returned something that cannot be awaited.
            ConfigurationError: this worker is already running, or its store is closed.
        """
        await self._run(until_idle=True)

    async def _run(self, *, until_idle: bool) -> None:
        if not self._ended.is_set():
            raise ConfigurationError("this worker is already running; create another one, or raise its concurrency")
        self._wake = asyncio.Event()  # new events: this run may be in another event loop
        self._ended = asyncio.Event()
        self._failure = None
        self._cancelled_late = False
        self._extended_at = time.monotonic()
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        try:
            async with asyncio.TaskGroup() as outer:  # outlives the handlers, including their cleanup
                helpers = [outer.create_task(self._extend_leases())]
                if self._retention is not None and not until_idle:
                    helpers.append(outer.create_task(self._purge(self._retention)))
                async with asyncio.TaskGroup() as handlers:
                    try:
                        await self._claim_and_start(handlers, until_idle=until_idle)
                    except Exception as error:  # noqa: BLE001 - raised below; the group would wrap it
                        self._end_run(error)
                    await self._wait_for_handlers()
                for helper in helpers:
                    helper.cancel()
        finally:
            try:
                await finish(self._release_all())
            finally:
                self._processor.stale.flush()
                self._ended.set()
        failure = self._failure
        if isinstance(failure, SystemExit):  # as itself it could end the process as if it had succeeded
            raise HandlerExitError(
                "a handler raised SystemExit: its attempt has failed, and the worker stopped"
            ) from failure
        if failure is not None:
            raise failure

    async def _claim_and_start(self, group: asyncio.TaskGroup, *, until_idle: bool) -> None:
        while not self._is_ending():
            self._wake.clear()
            if self._held and time.monotonic() - self._extended_at > self._lease * 2 / 3:
                await self._extend_all()  # else, if the event loop was blocked, the claim would return what is held
            free = self._free()
            leases = await self._claim(free, retry=not until_idle) if free else ()
            new = [lease for lease in leases if not self._renew(lease)]
            if self._is_ending():
                self._to_release += new  # stopped while the claim was in flight
                return
            for lease in new:
                held = self._held[lease.id] = Held(lease, time.monotonic(), not lease.alone)
                held.task = group.create_task(self._work(held))
                held.task.add_done_callback(partial(self._on_task_done, held))
            if until_idle and not self._held:
                return
            if len(leases) < free or not free:
                await self._pause(None if not free or until_idle else self._poll)

    def _is_ending(self) -> bool:
        return self._stopping or self._failure is not None

    def _free(self) -> int:
        """Return how many more handlers may start.

        Handled deliveries free their slot before they are acknowledged. So the store can acknowledge them and claim the
        next ones in one transaction (measured: a third more deliveries a second on SQLite). Their number is bounded.
        """
        if any(held.lease.alone for held in self._held.values()):
            return 0
        handling = sum(held.handling for held in self._held.values())
        return min(self._concurrency - handling, 2 * self._concurrency - len(self._held))

    def _renew(self, lease: Lease) -> bool:
        """If the delivery is held, with a lease that has run out, hold it by this one. Return whether it is held."""
        held = self._held.get(lease.id)
        if held is not None:
            held.lease = lease
        return held is not None

    def _free_slot(self, held: Held) -> None:
        """Free the slot of a delivery whose handler has ended."""
        self._warn_if_slow(held)
        held.handling = False
        self._wake.set()

    async def _claim(self, limit: int, *, retry: bool) -> Sequence[Lease]:
        try:
            claimed = self._store.claim(limit, lease=self._lease, ordered=self._ordered, halt=self._halt)
            leases = await _await_store(claimed)
        except StoreError as error:
            if not retry:
                raise
            _log.error("claiming deliveries failed; retrying in %g s: %.200r", self._poll, str(error))
            return ()
        self._last_claim_at = time.time()
        return leases

    async def _pause(self, seconds: float | None) -> None:
        """Wait until a handler ends or the worker is stopped, for at most *seconds*."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _on_task_done(self, held: Held, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is not None:  # possibly cancelled before it started
            self._to_release.append(self._held.pop(held.lease.id).lease)
        self._wake.set()

    async def _wait_for_handlers(self) -> None:
        if self._held:
            _, late = await asyncio.wait([held.task for held in self._held.values()], timeout=self._stop_timeout)
            self._cancelled_late = True
            for task in late:
                task.cancel()

    async def _release_all(self) -> None:
        leases, self._to_release = self._to_release, []
        released = await asyncio.gather(*map(self._store.release, leases), return_exceptions=True)
        for lease, result in zip(leases, released, strict=True):
            if result is True:
                _log.info("%.150s: released; this attempt does not count", name_of(lease))
            else:
                text = "%.150s: not released; if still unfinished, it is retried when its lease expires"
                _log.warning(text, name_of(lease))

    async def _extend_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            self._processor.stale.warn()
            for held in self._held.values():
                self._warn_if_slow(held)
            await self._extend_all()

    def _warn_if_slow(self, held: Held) -> None:
        seconds = time.monotonic() - held.started_at
        if held.handling and not held.warned and seconds > 3 * self._lease:
            held.warned = True
            text = "%.150s: its handler has run for %.1f s; it may hang or block the event loop"
            _log.warning(text, name_of(held.lease), seconds)

    async def _extend_all(self) -> None:
        began = time.monotonic()
        await asyncio.gather(*map(self._extend, list(self._held.values())))
        self._extended_at = began

    async def _extend(self, held: Held) -> None:
        lease = held.lease
        try:
            kept = await _await_store(self._store.extend(lease, seconds=self._lease))
        except Exception as error:  # noqa: BLE001 - the handler keeps running, and this is retried
            _log.warning("%.150s: extending its lease failed; retrying: %.200r", name_of(lease), describe(error))
        else:
            if not kept and held.handling and lease is held.lease:  # else its result is recorded meanwhile
                _log.warning("%.150s: lease lost; another worker may handle it too", name_of(lease))

    async def _work(self, held: Held) -> None:
        try:
            if held.lease.alone:
                await self._let_others_finish(held)
            await self._processor.process(held)
        except Exception as error:  # noqa: BLE001 - one failure must not end the other deliveries
            text = "%.150s: result not recorded; retrying when its lease expires: %.200r"
            _log.error(text, name_of(held.lease), describe(error))
        del self._held[held.lease.id]  # at once: a claim may return it again

    async def _let_others_finish(self, held: Held) -> None:
        """Wait until *held* can run alone. Raise `CancelledError` if the run ends meanwhile."""
        text = "%.150s: its last two leases expired; it waits until no other handler runs"
        _log.warning(text, name_of(held.lease))
        if others := [one.task for one in self._held.values() if one is not held]:
            await asyncio.wait(others)
        if self._is_ending():
            raise asyncio.CancelledError
        held.started_at, held.handling = time.monotonic(), True

    async def _purge(self, retention: Retention) -> None:
        while True:
            try:
                purged = await _await_store(retention.apply(self._store))
            except Exception as error:  # noqa: BLE001 - purging is retried, and the worker keeps running
                _log.warning("purging the store failed; retrying in %g s: %.200r", retention.every, describe(error))
            else:
                _log.log(logging.INFO if purged else logging.DEBUG, "purged %d duplicate keys and dead letters", purged)
            await asyncio.sleep(retention.every)


async def _await_store(call: Awaitable[T]) -> T:
    """Await a store call. If only the call was cancelled, and not the worker, treat that as a store failure."""
    try:
        return await call
    except asyncio.CancelledError:
        if is_being_cancelled():
            raise
        raise StoreUnavailableError(problem="a store operation was cancelled") from None
