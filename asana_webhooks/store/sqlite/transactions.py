"""Group commit: concurrent operations share one transaction, and so one wait for the disk.

A queue is one thread with one connection. The event loop gathers operations. All that are ready in one turn of the
loop run in the thread as one transaction, while the loop gathers the next ones.
"""

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from attrs import define, field

from asana_webhooks.errors import AsanaError, ConfigurationError, StoreFullError, StoreUnavailableError
from asana_webhooks.store.sqlite.file import DatabaseFile, is_transient, sqlite3, unavailable

__all__ = ["BatchOperation", "Operation", "TransactionQueue"]

R = TypeVar("R")
T = TypeVar("T")

Operation = Callable[[sqlite3.Connection], T]
"""A function that runs in a transaction. It may raise an `AsanaError` only before its first write."""

BatchOperation = Callable[[sqlite3.Connection, Sequence[R]], Sequence[T | AsanaError]]
"""A function that runs in a transaction for several consecutive requests, and returns the outcome of each."""

_FAULTS_OF_ONE = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.InterfaceError)
"""SQLite's errors for the values of one operation. Its other errors concern the database."""


@define(eq=False)
class _Group:
    """Consecutive requests of one kind, which run together."""

    run: BatchOperation[Any, Any]
    requests: list[Any] = field(factory=list)
    answers: list[asyncio.Future[Any]] = field(factory=list)
    sizes: list[int] = field(factory=list)
    """How many bytes each request adds, for those that count towards the limits."""


def _one_by_one(connection: sqlite3.Connection, operations: Sequence[Operation[T]]) -> list[T | AsanaError]:
    outcomes: list[T | AsanaError] = []
    for operation in operations:
        try:
            outcomes.append(operation(connection))
        except AsanaError as error:  # nothing is written yet, so the transaction continues
            outcomes.append(error)
    return outcomes


class TransactionQueue:
    """One thread, one connection, one transaction at a time.

    Args:
        file: the database.
        connect: called in the thread; opens the database.
        max_operations: how many operations submitted with *adds* may be in flight.
        max_bytes: how many bytes these operations may add in total.
    """

    name: ClassVar = "asana-webhooks-reader"
    begin: ClassVar = "BEGIN"

    def __init__(
        self,
        file: DatabaseFile,
        connect: Callable[[], sqlite3.Connection],
        *,
        max_operations: int,
        max_bytes: int = 0,
    ) -> None:
        self._file = file
        self._connect = connect
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        # Used in the loop
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        self._ended = False
        self._gathered: list[_Group] = []
        self._operations = 0
        self._bytes = 0
        self._busy = False
        self._idle = asyncio.Event()
        # Used in the thread
        self._connection: sqlite3.Connection | None = None

    def submit(self, operation: Operation[T], *, adds: int | None = None) -> asyncio.Future[T]:
        """Run an operation in the next transaction; see `submit_batched`."""
        return self.submit_batched(_one_by_one, operation, adds=adds)

    def submit_batched(self, run: BatchOperation[R, T], request: R, *, adds: int | None = None) -> asyncio.Future[T]:
        """Run a request in the next transaction; the future is done when that transaction is committed.

        Cancelling the future ends only the caller's waiting.

        Args:
            run: called in the thread, once for all consecutive requests with the same *run*.
            request: passed to *run*, in a list with these other requests.
            adds: how many bytes the request adds to the store; ``None``: no limit applies to it.

        Raises:
            StoreFullError: too many operations or bytes are in flight, or this request alone exceeds *max_bytes*.
        """
        if adds is not None:
            self.check_room(adds)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        if not self._gathered or self._gathered[-1].run != run:
            self._gathered.append(_Group(run))
        group = self._gathered[-1]
        group.requests.append(request)
        group.answers.append(answer)
        if adds is not None:
            self._operations += 1
            self._bytes += adds
            group.sizes.append(adds)
        if not self._busy:
            self._busy = True
            self._idle.clear()
            loop.call_soon(self._start)  # the other operations ready in this turn of the loop join
        return answer

    def check_room(self, adds: int) -> None:
        """Raise `StoreFullError` unless an operation that adds *adds* bytes would be accepted now."""
        if adds > self._max_bytes:
            raise StoreFullError(problem="the delivery is larger than max_bytes", advice="Raise max_bytes.")
        if self._operations >= self._max_operations or self._bytes + adds > self._max_bytes:
            advice = "Use a faster disk, or raise max_operations and max_bytes."
            raise StoreFullError(problem="too many operations or bytes are waiting", advice=advice)

    def connect(self) -> None:
        """Connect without a transaction. It blocks; call it in another thread."""
        self._executor.submit(self._connected).result()

    async def finish(self) -> None:
        """Wait for the operations in flight."""
        while self._busy:
            await self._idle.wait()

    async def aclose(self) -> None:
        """Wait for the operations in flight, then close the connection and end the thread."""
        await self.finish()
        if not self._ended:
            self._ended = True
            closing = self._executor.submit(self._disconnect)
            self._executor.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))
            self._executor.shutdown()

    # In the loop

    def _start(self) -> None:
        groups, self._gathered = self._gathered, []
        self._executor.submit(self._work, groups, asyncio.get_running_loop())

    def _deliver(self, groups: Sequence[_Group], outcomes: Sequence[Sequence[Any]]) -> None:
        for group, results in zip(groups, outcomes, strict=True):
            self._operations -= len(group.sizes)
            self._bytes -= sum(group.sizes)
            for answer, result in zip(group.answers, results, strict=True):
                if answer.done():
                    continue  # the caller was cancelled
                if isinstance(result, Exception):
                    answer.set_exception(_copied(result) if isinstance(result, AsanaError) else result)
                else:
                    answer.set_result(result)
        # The callers wake before this call, so the operations they submit then join the next transaction.
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._gathered:
            self._start()
        else:
            self._busy = False
            self._idle.set()

    # In the thread

    def _before(self, connection: sqlite3.Connection) -> None:
        """Run before each transaction except a connection's first. If it raises, the transaction fails."""

    def _after(self, connection: sqlite3.Connection) -> None:
        """Run after each transaction, when its outcomes are sent to the loop."""

    def _work(self, groups: Sequence[_Group], loop: asyncio.AbstractEventLoop) -> None:
        outcomes = self._outcomes([(group.run, group.requests) for group in groups])
        with suppress(RuntimeError):  # the loop is closed, so no caller waits
            loop.call_soon_threadsafe(self._deliver, groups, outcomes)
        if self._connection is not None:
            try:
                self._after(self._connection)
            except sqlite3.Error:  # the transaction is committed; the next one opens a new connection
                self._disconnect()

    def _outcomes(self, work: Sequence[tuple[BatchOperation[Any, Any], Sequence[Any]]]) -> list[Sequence[Any]]:
        try:
            return self._transaction(work)
        except AsanaError as error:
            return [[error] * len(requests) for _, requests in work]
        except BaseException as error:  # noqa: BLE001 - it must reach the caller, and not end this thread
            if sum(len(requests) for _, requests in work) == 1:
                return [[_explained(error)]]
        # One request is at fault. Run each alone, so that the others succeed.
        return [[self._outcomes([(run, [one])])[0][0] for one in requests] for run, requests in work]

    def _transaction(self, work: Sequence[tuple[BatchOperation[Any, Any], Sequence[Any]]]) -> list[Sequence[Any]]:
        connection = self._connected()
        try:
            connection.execute(self.begin)
            outcomes = [run(connection, requests) for run, requests in work]
            connection.execute("COMMIT")
        except BaseException as error:
            self._roll_back(connection)
            if not isinstance(error, sqlite3.Error) or isinstance(error, _FAULTS_OF_ONE):
                raise
            if not is_transient(error):
                self._disconnect()  # the next transaction opens a new connection
            raise unavailable(error) from error
        return outcomes

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and not self._file.is_in_place():
            self._disconnect()  # writes to a deleted file are lost
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
            self._file.disconnect(connection)


def _copied(error: AsanaError) -> AsanaError:
    """Return a copy of an error; an error raised in several tasks would collect all their tracebacks."""
    copied = copy.copy(error)
    copied.args = error.args
    return copied


def _explained(error: BaseException) -> Exception:
    """Return the error for the caller, without the text and objects of errors that may contain a secret."""
    if isinstance(error, (sqlite3.Error, ValueError, OverflowError)):
        return ConfigurationError(f"the store cannot save one of the values given ({type(error).__name__})")
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    # A cancellation or an exit would end the caller, and a future does not accept StopIteration.
    return StoreUnavailableError(
        problem=f"a store operation was interrupted ({type(error).__name__})",
        advice="Check the clock function that was given to the store.",
    )
