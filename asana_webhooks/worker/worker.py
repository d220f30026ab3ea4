"""The worker: leases deliveries from a store, hands them to the user's coroutine, and tells the store how it went.

Every delivery is handled at least once. It is handled more than once when a worker dies between handling and
acknowledging, or loses its lease; `Event.fingerprint` is there to notice.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Final, Literal, Self, TypeVar

from attrs import frozen

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks._tasks import finish, is_being_cancelled
from asana_webhooks.errors import AsanaError, ConfigurationError, StoreError, StoreUnavailableError
from asana_webhooks.models import Delivery
from asana_webhooks.store.base import Lease, Store
from asana_webhooks.worker.processing import Backoff, Handler, Processor, ProcessResult

__all__ = ["Retention", "Worker"]

T = TypeVar("T")

_DAY: Final = 86_400.0
_SHORTEST_RETENTION: Final = 26 * 3_600.0
"""What comes again after that is `Delivery.stale`: later than 25 hours, with room for clocks."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Retention:
    """How long a store remembers finished deliveries, dead letters and closed registrations.

    A running `Worker` applies it; who runs none awaits `apply` from time to time.
    """

    done: float = 3 * _DAY
    """Seconds after its arrival for which a finished delivery is known as a duplicate, at least 26 hours. Its body goes
    as soon as it is done. A captured delivery that somebody sends again after that is let in, as `Delivery.stale`."""
    dead: float | None = None
    """Seconds after its arrival for which a dead letter is kept, with its body, if at least *done*; ``None``: until
    somebody purges it."""
    every: float = 600.0
    """Seconds between one purge and the next."""

    def __attrs_post_init__(self) -> None:
        check_seconds("every", self.every, zero=False)
        if check_seconds("done", self.done) < _SHORTEST_RETENTION:
            raise ConfigurationError(
                f"done must be at least {_SHORTEST_RETENTION:.0f} seconds: Asana sends for 24 hours, and what comes"
                " later is stale"
            )
        if self.dead is not None and check_seconds("dead", self.dead) < self.done:
            raise ConfigurationError("dead must not be less than done: dead letters are known as duplicates, too")

    async def apply(self, store: Store) -> int:
        """Have *store* purge what is old enough, in small batches; return how many deliveries that were.

        Raises:
            StoreError: the store failed; some may be purged already.
        """
        purged = await store.purge(older_than=self.done)
        if self.dead is not None:
            purged += await store.purge(older_than=self.dead, dead=True)
        return purged


class Worker:
    """Hands stored deliveries to a coroutine function, several at a time.

    ::

        async with Worker(store, handle) as worker:
            await worker.run()

    Returning from *handle* acknowledges a delivery. Raising has it tried again after a wait (the traceback is logged),
    and after *attempts* it becomes a dead letter with its error; so does, at once, a delivery whose body is not
    what Asana documents. While a handler runs its lease is extended. Any number of workers, in any number of
    processes, may share a store. While it runs, it also has the store purge what *retention* says.

    Args:
        store: where deliveries are leased from.
        handle: the coroutine function; it gets a `Delivery`.
        concurrency: how many handlers run at once.
        ordered: hand out a registration's deliveries one after the other, in the order they came. A failing one holds
            up those behind it until it succeeds or becomes a dead letter. By default nothing waits for anything.
        on_dead: with *ordered*, what becomes of a registration's later deliveries when one is a dead letter: ``"skip"``
            goes on with them, ``"halt"`` waits until it is requeued or purged.
        refuse_stale: make a dead letter of a delivery that is `Delivery.stale`, instead of handling it. Needs a clock
            that is right.
        lease: seconds a delivery is held before another worker may take it, should this one die.
        attempts: how often a delivery is tried.
        backoff: how long a failed delivery waits.
        poll: seconds between looks at the store while it has nothing to do.
        retention: how long the store remembers finished deliveries; ``None``: this worker purges nothing.
        stop_timeout: seconds running handlers may take after `stop`; then they are cancelled and what they held is
            given back. A handler that ignores being cancelled is waited for.
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
        # Idling, purging and stopping
        poll: float = 0.5,
        retention: Retention | None = Retention(),
        stop_timeout: float = 30.0,
    ) -> None:
        check_count("concurrency", concurrency)
        check_count("attempts", attempts)
        check_seconds("lease", lease, zero=False)
        check_seconds("poll", poll, zero=False)
        check_seconds("stop_timeout", stop_timeout)
        if on_dead not in {"skip", "halt"} or (on_dead == "halt" and not ordered):
            raise ConfigurationError("on_dead must be 'skip', or 'halt' together with ordered=True")
        self._store = store
        self._handle = handle
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
            handle=self._in_slot,
            attempts=attempts,
            backoff=backoff or Backoff(),
            refuse_stale=refuse_stale,
            count=self._count,
        )
        self._held: dict[asyncio.Task[None], Lease] = {}
        self._slots: set[asyncio.Task[None] | None] = set()
        """Of those that are held, which run a handler, or are about to."""
        self._to_release: list[Lease] = []
        self._stopping = False
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
        """How many attempts ended in which way since this worker was made; for metrics. A live view.

        The keys are ``done``, ``to be retried``, ``dead letter``, ``unreadable`` (a dead letter, too) and ``lease
        lost``. An attempt that is given back to the store counts nowhere. Those with a `Delivery.stale` delivery count
        under ``stale`` besides.
        """
        return self._counts_view

    def _count(self, result: ProcessResult) -> None:
        self._counts[result] += 1

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
            async with asyncio.TaskGroup() as beside:  # ends after the handlers have, clean-up included
                helpers = [beside.create_task(self._extend_leases())]
                if self._retention is not None and not until_idle:
                    helpers.append(beside.create_task(self._purge(self._retention)))
                async with asyncio.TaskGroup() as handlers:
                    try:
                        await self._lease_and_start(handlers, until_idle=until_idle)
                    except Exception as error:  # noqa: BLE001 - raised below; the group would wrap it
                        failure = error
                    await self._let_finish()
                for helper in helpers:
                    helper.cancel()
        finally:
            try:
                await finish(self._release_all())
            finally:
                self._ended.set()
        if failure is not None:
            raise failure

    async def _lease_and_start(self, group: asyncio.TaskGroup, *, until_idle: bool) -> None:
        while not self._stopping:
            self._wake.clear()
            free = self._free()
            leases = await self._claim(free, retry=not until_idle) if free else ()
            if self._stopping:
                self._to_release += leases  # asked for before
                return
            for lease in leases:
                task = group.create_task(self._work(lease))
                self._held[task] = lease
                self._slots.add(task)
                task.add_done_callback(self._let_go)
            if until_idle and not self._held:
                return
            if len(leases) < free or not free:
                await self._pause(None if not free or until_idle else self._poll)

    def _free(self) -> int:
        """Return how many handlers more may start.

        What is handled but not yet acknowledged takes no slot, so that the next ones are leased in the transaction that
        acknowledges these (measured: a third more deliveries a second on SQLite). It is bounded all the same.
        """
        return min(self._concurrency - len(self._slots), 2 * self._concurrency - len(self._held))

    async def _in_slot(self, delivery: Delivery) -> None:
        try:
            await self._handle(delivery)
        finally:
            self._slots.discard(asyncio.current_task())
            self._wake.set()

    async def _claim(self, limit: int, *, retry: bool) -> Sequence[Lease]:
        try:
            claimed = self._store.claim(limit, lease=self._lease, ordered=self._ordered, halt=self._halt)
            return await _answer(claimed)
        except StoreError as error:
            if not retry:
                raise
            _log.error("claiming deliveries failed; retrying in %g seconds: %.200r", self._poll, str(error))
            return ()

    async def _pause(self, seconds: float | None) -> None:
        """Wait until a handler ends or the worker is stopped, *seconds* at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _let_go(self, task: "asyncio.Task[None]") -> None:
        lease = self._held.pop(task)
        self._slots.discard(task)
        if task.cancelled() or task.exception() is not None:  # perhaps before it took its first step
            self._to_release.append(lease)
        self._wake.set()

    async def _let_finish(self) -> None:
        if self._held:
            _, late = await asyncio.wait(self._held, timeout=self._stop_timeout)
            for task in late:
                task.cancel()

    async def _release_all(self) -> None:
        leases, self._to_release = self._to_release, []
        released = await asyncio.gather(*map(self._store.release, leases), return_exceptions=True)
        for lease, result in zip(leases, released, strict=True):
            if result is True:
                _log.info("delivery %d: released", lease.id)
            else:
                _log.warning(
                    "delivery %d: not released; it has just been acknowledged, or its lease must run out",
                    lease.id,
                )

    async def _extend_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            await asyncio.gather(*map(self._extend, list(self._held.values())))

    async def _extend(self, lease: Lease) -> None:
        try:
            kept = await _answer(self._store.extend(lease, seconds=self._lease))
        except Exception as error:  # noqa: BLE001 - the handler goes on, and this is tried again
            _log.warning("delivery %d: extending its lease failed: %.200r", lease.id, _shown(error))
        else:
            if not kept:
                _log.warning("delivery %d: its lease is lost, so another worker may handle it too", lease.id)

    async def _work(self, lease: Lease) -> None:
        try:
            await self._processor.process(lease)
        except Exception as error:  # noqa: BLE001 - one delivery's trouble must not end the others
            _log.error("delivery %d: not acknowledged, so it will come again: %.200r", lease.id, _shown(error))

    async def _purge(self, retention: Retention) -> None:
        while True:
            try:
                purged = await _answer(retention.apply(self._store))
            except Exception as error:  # noqa: BLE001 - it is tried again, and the work goes on
                _log.warning("purging the store failed: %.200r", _shown(error))
            else:
                _log.log(logging.INFO if purged else logging.DEBUG, "purged %d finished deliveries", purged)
            await asyncio.sleep(retention.every)


async def _answer(asked: Awaitable[T]) -> T:
    """Return a store's answer; if it was interrupted, that is its failure and not the worker's end."""
    try:
        return await asked
    except asyncio.CancelledError:
        if is_being_cancelled():
            raise
        raise StoreUnavailableError(problem="the store was interrupted") from None


def _shown(error: Exception) -> str:
    """Return what the log says of a store's *error*: our own texts hold no secrets, others' may."""
    return str(error) if isinstance(error, AsanaError) else type(error).__name__
