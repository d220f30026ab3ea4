"""The worker: claims deliveries from a store, passes them to your coroutine function, and records the results.

Every delivery is handled at least once. It is handled again if a worker dies before acknowledging it, or loses its
lease. Use `Event.fingerprint` to detect repeated events.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Final, Literal, Self, TypeVar, cast

from attrs import frozen

from asana_webhooks._checks import check_count, check_handler, check_seconds, check_store, is_store
from asana_webhooks._tasks import finish, is_being_cancelled
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    HandlerExitError,
    StoreError,
    StoreUnavailableError,
)
from asana_webhooks.store.base import Lease, Store
from asana_webhooks.worker.processing import Backoff, Handler, Processor, ProcessResult, StaleWarning
from asana_webhooks.worker.signals import stop_on_signals

__all__ = ["Retention", "Worker", "WorkerHealth"]

T = TypeVar("T")

_DAY: Final = 86_400.0
_SHORTEST_RETENTION: Final = 26 * 3_600.0
"""Longer than the 25 hours after which a replay is `Delivery.stale`, with a margin for clock differences."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Retention:
    """How long a store keeps finished deliveries, dead letters and closed registrations.

    A running `Worker` applies it. Without a worker, await `apply` regularly.
    """

    done: float = 3 * _DAY
    """Seconds after its arrival during which a finished delivery is recognized as a duplicate; at least 26 hours. Its
    body is deleted once it is done. A delivery replayed later is accepted, and is `Delivery.stale`."""
    dead: float | None = None
    """Seconds after arrival for which a dead letter and its body are kept, at least *done*; ``None``: until purged."""
    every: float = 600.0
    """Seconds between purges."""

    def __attrs_post_init__(self) -> None:
        check_seconds("every", self.every, zero=False)
        if check_seconds("done", self.done) < _SHORTEST_RETENTION:
            raise ConfigurationError(
                f"done must be at least {_SHORTEST_RETENTION:.0f} seconds: Asana resends a delivery for 24 hours"
            )
        if self.dead is not None and check_seconds("dead", self.dead) < self.done:
            raise ConfigurationError("dead must not be less than done: dead letters also identify duplicates")

    async def apply(self, store: Store) -> int:
        """Purge deliveries that are old enough from *store*, in small batches. Return how many were purged.

        Raises:
            StoreError: the store failed; some deliveries may already be purged.
        """
        purged = await store.purge(older_than=self.done)
        if self.dead is not None:
            purged += await store.purge(older_than=self.dead, dead=True)
        return purged


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
    The worker does not claim while *concurrency* handlers are running."""


class Worker:
    """Passes stored deliveries to a coroutine function, several at a time.

    ::

        async with Worker(store, handle) as worker:
            await worker.run()

    Returning from *handle* acknowledges a delivery. Raising logs the traceback and retries the delivery after a
    backoff. After *attempts* attempts it becomes a dead letter with its error, which is logged at ERROR; after a
    `PermanentFailure`, at once. So does a delivery whose body is not JSON with a list of events. The worker extends
    the lease while a handler runs, and warns once when it has run for three leases. Any number of workers, in any
    number of processes, may share a store. A running worker also purges according to *retention*.

    Args:
        store: the store to claim deliveries from.
        handle: the coroutine function to call with each `Delivery`, or another callable that returns an awaitable.
        concurrency: the maximum number of handlers that run at once.
        ordered: handle a registration's deliveries one at a time, in order of arrival. A failing delivery blocks the
            later ones until it succeeds or becomes a dead letter. By default deliveries do not wait for each other.
        on_dead: with *ordered*, how to treat a registration's later deliveries after a dead letter. ``"skip"`` handles
            them; ``"halt"`` blocks them until the dead letter is requeued or purged.
        refuse_stale: make a dead letter of each `Delivery.stale` delivery, unhandled. Needs a correct system clock.
        lease: seconds after which another worker may claim a delivery if this worker dies.
        attempts: the maximum number of attempts for a delivery.
        backoff: the delay before a failed delivery is retried; a default `Backoff` if ``None``.
        handler_timeout: seconds after which a handler is cancelled and its attempt has failed; ``None``: no limit.
        poll: seconds between claims while the store has nothing to claim, and before a failed claim is retried.
        retention: how long the store keeps finished deliveries; with ``None`` this worker purges nothing.
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
        retention: Retention | None = Retention(),
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
        self._counts: dict[str, int] = dict.fromkeys(ProcessResult, 0)
        self._counts_view = MappingProxyType(self._counts)
        self._processor = Processor(
            store=store,
            handle=handle,
            attempts=attempts,
            backoff=backoff or Backoff(),
            handler_timeout=handler_timeout,
            refuse_stale=refuse_stale,
            count=self._count,
            on_handled=self._free_slot,
            end_run=self._end_run,
            is_interrupted=self._is_interrupted,
            stale=StaleWarning("refused" if refuse_stale else "handled anyway"),
        )
        self._held: dict[asyncio.Task[None], Lease] = {}
        self._slots: dict[asyncio.Task[None], float] = {}
        """The held tasks that run a handler or are about to, oldest first, with the monotonic time of their start."""
        self._slow: set[asyncio.Task[None]] = set()
        """The held tasks that a warning has already named."""
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
        return self._counts_view

    def _count(self, result: ProcessResult) -> None:
        self._counts[result] += 1

    def health(self) -> WorkerHealth:
        """Return the health of this worker. This does not ask the store."""
        oldest = next(iter(self._slots.values()), None)
        return WorkerHealth(
            running=not self._ended.is_set(),
            handling=len(self._slots),
            oldest_attempt_seconds=None if oldest is None else time.monotonic() - oldest,
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
            free = self._free()
            leases = await self._claim(free, retry=not until_idle) if free else ()
            if self._is_ending():
                self._to_release += leases  # stopped while the claim was in flight
                return
            now = time.monotonic()
            for lease in leases:
                task = group.create_task(self._work(lease))
                self._held[task] = lease
                self._slots[task] = now
                task.add_done_callback(self._on_task_done)
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
        return min(self._concurrency - len(self._slots), 2 * self._concurrency - len(self._held))

    def _free_slot(self) -> None:
        """Free the slot of the current task: its handler has ended."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._warn_if_slow(task, self._slots.pop(task))
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

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        lease = self._held.pop(task)
        self._slots.pop(task, None)
        self._slow.discard(task)
        if task.cancelled() or task.exception() is not None:  # possibly cancelled before it started
            self._to_release.append(lease)
        self._wake.set()

    async def _wait_for_handlers(self) -> None:
        if self._held:
            _, late = await asyncio.wait(self._held, timeout=self._stop_timeout)
            self._cancelled_late = True
            for task in late:
                task.cancel()

    async def _release_all(self) -> None:
        leases, self._to_release = self._to_release, []
        released = await asyncio.gather(*map(self._store.release, leases), return_exceptions=True)
        for lease, result in zip(leases, released, strict=True):
            if result is True:
                _log.info("delivery %d: released; this attempt does not count", lease.id)
            else:
                _log.warning(
                    "delivery %d: not released; if still unfinished, it is retried when its lease expires", lease.id
                )

    async def _extend_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            self._processor.stale.warn()
            for task, started_at in self._slots.items():
                self._warn_if_slow(task, started_at)
            await asyncio.gather(*map(self._extend, list(self._held.values())))

    def _warn_if_slow(self, task: "asyncio.Task[None]", started_at: float) -> None:
        seconds = time.monotonic() - started_at
        if seconds > 3 * self._lease and task not in self._slow:
            self._slow.add(task)
            lease = self._held[task]
            _log.warning(
                "delivery %d of webhook %.40r: its handler has run for %.1f s; it may hang or block the event loop",
                *(lease.id, lease.webhook_gid, seconds),
            )

    async def _extend(self, lease: Lease) -> None:
        try:
            kept = await _await_store(self._store.extend(lease, seconds=self._lease))
        except Exception as error:  # noqa: BLE001 - the handler keeps running, and this is retried
            _log.warning("delivery %d: extending its lease failed; retrying: %.200r", lease.id, _describe(error))
        else:
            if not kept:
                _log.warning("delivery %d: lease lost; another worker may handle it too", lease.id)

    async def _work(self, lease: Lease) -> None:
        try:
            await self._processor.process(lease)
        except Exception as error:  # noqa: BLE001 - one failure must not end the other deliveries
            _log.error(
                "delivery %d: result not recorded; retrying when its lease expires: %.200r", lease.id, _describe(error)
            )

    async def _purge(self, retention: Retention) -> None:
        while True:
            try:
                purged = await _await_store(retention.apply(self._store))
            except Exception as error:  # noqa: BLE001 - purging is retried, and the worker keeps running
                _log.warning(
                    "purging finished deliveries failed; retrying in %g s: %.200r", retention.every, _describe(error)
                )
            else:
                _log.log(logging.INFO if purged else logging.DEBUG, "purged %d deliveries", purged)
            await asyncio.sleep(retention.every)


async def _await_store(call: Awaitable[T]) -> T:
    """Await a store call. If only the call was cancelled, and not the worker, treat that as a store failure."""
    try:
        return await call
    except asyncio.CancelledError:
        if is_being_cancelled():
            raise
        raise StoreUnavailableError(problem="a store operation was cancelled") from None


def _describe(error: Exception) -> str:
    """Return a store's *error* as text for the log. Only this package's own messages are known to hold no secrets."""
    return str(error) if isinstance(error, AsanaError) else type(error).__name__
