"""The worker: leases deliveries from a store, hands them to the user's coroutine, and tells the store how it went.

Every delivery is handled at least once. It is handled more than once when a worker dies between handling and
acknowledging, or loses its lease; `Event.fingerprint` is there to notice.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType, TracebackType
from typing import Literal, Self, TypeVar

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks._tasks import finish, is_being_cancelled
from asana_webhooks.errors import AsanaError, ConfigurationError, StoreError, StoreUnavailableError
from asana_webhooks.models import Delivery
from asana_webhooks.store.base import Lease, Store
from asana_webhooks.worker.backoff import Backoff
from asana_webhooks.worker.processing import Handler, Settled, Settler
from asana_webhooks.worker.retention import Retention

__all__ = ["Handler", "Worker"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Worker:
    """Hands stored deliveries to a coroutine function, several at a time.

    ::

        async with Worker(store, handle) as worker:
            await worker.run()

    Returning from *handle* acknowledges a delivery. Raising has it tried again after a wait (the traceback is logged),
    and after *attempts* it becomes a dead letter with its error; so does, at once, a delivery whose body is not
    what Asana documents. While a handler runs its lease is extended. Any number of workers, in any number of
    processes, may share a store. While it runs, it also has the store forget what is over.

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
        retention: how long what is over is remembered; ``None``: this worker leaves that alone.
        stop_timeout: seconds running handlers may take after `stop`; then they are cancelled and what they held is
            given back. A handler that ignores being cancelled is waited for.
        sleep: what sleeps between extensions of leases and between looks at what is over, for tests.
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
        # Idling, forgetting and stopping
        poll: float = 0.5,
        retention: Retention | None = Retention(),  # noqa: B008 - a frozen value
        stop_timeout: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
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
        self._sleep = sleep
        self._counts: dict[str, int] = dict.fromkeys(Settled, 0)
        self._seen = MappingProxyType(self._counts)
        self._settler = Settler(
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

    @property
    def counts(self) -> Mapping[str, int]:
        """How many attempts ended in which way since this worker was made; for metrics. A live view.

        The keys are ``done``, ``to be retried``, ``dead letter``, ``unreadable`` (a dead letter, too) and ``lease
        lost``. An attempt that is given back to the store counts nowhere. Those with a `Delivery.stale` delivery count
        under ``stale`` besides.
        """
        return self._seen

    def _count(self, end: Settled) -> None:
        self._counts[end] += 1

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
            async with asyncio.TaskGroup() as keeping:  # longer than handlers take, even to clean up
                keepers = [keeping.create_task(self._keep_leases())]
                if self._retention is not None and not until_idle:
                    keepers.append(keeping.create_task(self._forget(self._retention)))
                async with asyncio.TaskGroup() as handling:
                    try:
                        await self._lease_and_start(handling, until_idle=until_idle)
                    except Exception as error:  # noqa: BLE001 - raised below; the group would wrap it
                        failure = error
                    await self._let_finish()
                for keeper in keepers:
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
            free = self._free()
            leases = await self._claim(free, patient=not until_idle) if free else ()
            if self._stopping:
                self._unsettled += leases  # asked for before
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

    async def _claim(self, limit: int, *, patient: bool) -> Sequence[Lease]:
        try:
            claimed = self._store.claim(limit, lease=self._lease, ordered=self._ordered, halt=self._halt)
            return await _answer(claimed)
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
        self._slots.discard(task)
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
            else:
                _log.warning(
                    "delivery %d: not given back; it has just been acknowledged, or its lease must run out",
                    lease.id,
                )

    async def _keep_leases(self) -> None:
        while True:
            await self._sleep(self._lease / 3)
            await asyncio.gather(*map(self._extend, list(self._held.values())))

    async def _extend(self, lease: Lease) -> None:
        try:
            kept = await _answer(self._store.extend(lease, seconds=self._lease))
        except Exception as error:  # noqa: BLE001 - the handler goes on, and this is tried again
            _log.warning("delivery %d: its lease could not be extended: %.200r", lease.id, _shown(error))
        else:
            if not kept:
                _log.warning("delivery %d: its lease is lost, so another worker may handle it too", lease.id)

    async def _work(self, lease: Lease) -> None:
        try:
            await self._settler.settle(lease)
        except Exception as error:  # noqa: BLE001 - one delivery's trouble must not end the others
            _log.error("delivery %d: not acknowledged, so it will come again: %.200r", lease.id, _shown(error))

    async def _forget(self, retention: Retention) -> None:
        while True:
            try:
                forgotten = await _answer(retention.apply(self._store))
            except Exception as error:  # noqa: BLE001 - it is tried again, and the work goes on
                _log.warning("what is over could not be forgotten: %.200r", _shown(error))
            else:
                _log.log(
                    logging.INFO if forgotten else logging.DEBUG, "%d finished deliveries were forgotten", forgotten
                )
            await self._sleep(retention.every)


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
