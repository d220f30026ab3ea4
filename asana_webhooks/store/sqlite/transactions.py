"""Group commit: what is asked for at the same time shares one transaction, and so one wait for the disk.

A queue is one thread with one connection. Operations are gathered in the event loop; all that are ready in one turn of
it run in the thread as one transaction, while the next ones gather.
"""

import asyncio
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

from attrs import define

from asana_webhooks.errors import AsanaError, ConfigurationError, StoreFullError, StoreUnavailableError
from asana_webhooks.store.sqlite.file import DatabaseFile, is_passing, sqlite3, unavailable

__all__ = ["BatchOperation", "Operation", "TransactionQueue"]

R = TypeVar("R")
T = TypeVar("T")

Operation = Callable[[sqlite3.Connection], T]
"""What runs in a transaction. An error of this package leaves it before its first write, or not at all."""

BatchOperation = Callable[[sqlite3.Connection, Sequence[R]], Sequence[T | AsanaError]]
"""What runs in a transaction for several requests of one kind that came one after the other. It returns what becomes
of each; for errors it raises, the same holds as for an `Operation`.
"""

_FAULTS_OF_ONE = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.NotSupportedError,
    sqlite3.InterfaceError,
)
"""What SQLite raises for the values of one operation; its other errors concern the database."""


@define(eq=False)
class _Job:
    run: BatchOperation[Any, Any]
    request: Any
    answer: asyncio.Future[Any]
    adds: int | None


def _one_by_one(connection: sqlite3.Connection, operations: Sequence[Operation[T]]) -> list[T | AsanaError]:
    return [_attempt(operation, connection) for operation in operations]


def _attempt(operation: Operation[T], connection: sqlite3.Connection) -> T | AsanaError:
    try:
        return operation(connection)
    except AsanaError as error:  # nothing is written yet, so the transaction goes on
        return error


class TransactionQueue:
    """One thread, one connection, one transaction at a time.

    Args:
        file: the database.
        connect: opens it; called in the thread, as the following ones.
        name: of the thread.
        begin: the statement that begins a transaction.
        before: called before each transaction of a connection but its first; what it raises ends that.
        after: called after each transaction, when its outcomes are on their way.
        max_operations: how many operations that add something may be under way.
        max_bytes: how many bytes those may bring along.
    """

    def __init__(
        self,
        file: DatabaseFile,
        *,
        connect: Callable[[], sqlite3.Connection],
        name: str,
        begin: str,
        before: Callable[[sqlite3.Connection], None] = lambda _: None,
        after: Callable[[sqlite3.Connection], None] = lambda _: None,
        max_operations: int,
        max_bytes: int = 0,
    ) -> None:
        self._file = file
        self._connect = connect
        self._begin = begin
        self._before = before
        self._after = after
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        # Used in the loop
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._ended = False
        self._gathered: list[_Job] = []
        self._operations = 0
        self._bytes = 0
        self._busy = False
        self._idle = asyncio.Event()
        # Used in the thread
        self._connection: sqlite3.Connection | None = None

    def submit(self, operation: Operation[T], *, adds: int | None = None) -> asyncio.Future[T]:
        """Have an operation run in the next transaction; see `submit_batched`."""
        return self.submit_batched(_one_by_one, operation, adds=adds)

    def submit_batched(self, run: BatchOperation[R, T], request: R, *, adds: int | None = None) -> asyncio.Future[T]:
        """Have a request done in the next transaction; the future is done when that is committed.

        Cancelling the future makes the caller stop waiting, and nothing else.

        Args:
            run: called in the thread, once for all requests that follow one another and name the same.
            request: what it gets.
            adds: how many bytes the request brings into the store; ``None``: nothing, and it is always taken.

        Raises:
            StoreFullError: too much is under way already, or this alone is too much.
        """
        if adds is not None:
            if adds > self._max_bytes:
                raise StoreFullError(problem="the delivery is larger than max_bytes allows")
            if not self.has_room(adds):
                raise StoreFullError(problem="too much is waiting for it")
            self._operations += 1
            self._bytes += adds
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._gathered.append(_Job(run, request, answer, adds))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            loop.call_soon(self._start)  # whatever else is ready in this turn of the loop joins
        return answer

    async def submit_or_undo(self, operation: Operation[T], *, undo: Callable[[sqlite3.Connection, T], object]) -> T:
        """Have an operation run in the next transaction; if the caller is cancelled, what it would have got is undone.

        Args:
            operation: what to run.
            undo: gets what the operation returned, in a later transaction. Nobody hears of its errors.
        """

        def undo_result(answer: asyncio.Future[T]) -> None:
            if not answer.cancelled() and answer.exception() is None:
                result = answer.result()
                undone = self.submit(lambda db: undo(db, result))
                undone.add_done_callback(lambda done: done.exception())

        answer = self.submit(operation)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if answer.done():
                undo_result(answer)
            else:
                answer.add_done_callback(undo_result)
            raise

    def has_room(self, adds: int) -> bool:
        """Tell whether an operation that brings *adds* bytes would be taken now."""
        return self._operations < self._max_operations and self._bytes + adds <= self._max_bytes

    def connect(self) -> None:
        """Connect, without a transaction: a lock that somebody holds is not waited for. Blocks; for other threads.

        Raises:
            ConfigurationError: see `DatabaseFile.connect`.
            StoreUnavailableError: the same.
        """
        self._executor.submit(self._connected).result()

    async def aclose(self) -> None:
        """Wait for what is under way, then close the connection and end the thread."""
        while self._busy:
            await self._idle.wait()
        if not self._ended:
            self._ended = True
            closing = self._executor.submit(self._disconnect)
            self._executor.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))
            self._executor.shutdown()

    # In the loop

    def _start(self) -> None:
        batch, self._gathered = self._gathered, []
        self._executor.submit(self._work, batch, asyncio.get_running_loop())

    def _deliver(self, batch: Sequence[_Job], outcomes: Sequence[Any]) -> None:
        for job, outcome in zip(batch, outcomes, strict=True):
            if job.adds is not None:
                self._operations -= 1
                self._bytes -= job.adds
            if job.answer.done():
                continue  # its caller has gone
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)
        # The callers wake before this next turn, so what they ask for now still joins the next transaction.
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._gathered:
            self._start()
        else:
            self._busy = False
            self._idle.set()

    # In the thread

    def _work(self, batch: Sequence[_Job], loop: asyncio.AbstractEventLoop) -> None:
        outcomes = self._outcomes(batch)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._deliver, batch, outcomes)
        if self._connection is not None:
            try:
                self._after(self._connection)
            except sqlite3.Error:  # all is committed; the next transaction tries with a new connection
                self._disconnect()

    def _outcomes(self, batch: Sequence[_Job]) -> list[Any]:
        try:
            return self._transaction(batch)
        except AsanaError as error:
            return [_again(error) for _ in batch]
        except BaseException as error:  # noqa: BLE001 - in this thread it ends nothing, and its caller waits for it
            if len(batch) == 1:
                return [_explained(error)]
        # One of them failed by its own fault, and it must not fail its neighbours.
        return [outcome for job in batch for outcome in self._outcomes([job])]

    def _transaction(self, batch: Sequence[_Job]) -> list[Any]:
        connection = self._connected()
        try:
            connection.execute(self._begin)
            outcomes = [outcome for jobs in _kinds(batch) for outcome in _run_batch(jobs, connection)]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection)
            if isinstance(error, _FAULTS_OF_ONE):
                raise
            if not is_passing(error):
                self._disconnect()  # the next transaction tries with a new connection
            raise unavailable(error) from error
        except BaseException:
            self._roll_back(connection)
            raise
        return outcomes

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and not self._file.is_in_place():
            self._disconnect()  # what is written to a deleted file is lost
        if self._connection is None:
            self._connection = self._connect()
        else:
            self._before(self._connection)
        return self._connection

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            connection.rollback()
        except sqlite3.Error:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _kinds(batch: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Yield what can be done together, in the order it was asked for."""
    return (list(jobs) for _, jobs in groupby(batch, attrgetter("run")))


def _run_batch(jobs: Sequence[_Job], connection: sqlite3.Connection) -> Sequence[Any]:
    try:
        return jobs[0].run(connection, [job.request for job in jobs])
    except AsanaError as error:  # nothing of theirs is written yet
        return [_again(error) for _ in jobs]


def _again(error: AsanaError) -> AsanaError:
    """Return an equal error; one that is raised in several tasks would collect all their tracebacks."""
    copied = copy.copy(error)
    copied.args = error.args
    return copied


def _explained(error: BaseException) -> Exception:
    """Return what the caller gets; neither the text nor the objects of these errors, they may hold a secret."""
    if isinstance(error, (sqlite3.Error, ValueError, OverflowError)):
        return ConfigurationError(f"the store cannot keep one of the values given ({type(error).__name__})")
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    # A cancellation or an exit would end the caller, though nobody asked for that; a future takes no StopIteration.
    return StoreUnavailableError(
        problem=f"the store was interrupted ({type(error).__name__})",
        advice="Look at the clock it was given.",
    )
