"""Connections to PostgreSQL: one pool, calls that outlive a cancelled caller, and the driver's errors in words."""

import asyncio
import copy
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib import import_module
from typing import Any, Final, Generic, Protocol, TypeVar

from asana_webhooks._checks import check_count, check_seconds, kind_of
from asana_webhooks.errors import AsanaError, ConfigurationError, StoreFullError, StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.store import rules
from asana_webhooks.store.postgres.schema import DEFAULT_SCHEMA, check_schema, check_settings, prepare
from asana_webhooks.store.secret_box import Sealer, SecretBox

__all__ = ["NOW", "Batch", "Connection", "Database", "Pool", "check_texts", "shielded"]

R = TypeVar("R")
T = TypeVar("T")

NOW: Final = "coalesce($1::float8, extract(epoch FROM statement_timestamp())::float8)"
"""The time, in every statement that needs it: the database's, unless the store has a clock (`Database.now`)."""

_AT_ONCE: Final = 500
"""How many requests one call of a `Batch` takes at most."""

_LOST: Final = "the connection to PostgreSQL was lost"
_GONE: Final = ("the store's tables are gone", "Restart to create them, or restore a backup.")
_POOLED: Final = ("prepared statements do not work behind this pooler", "Lend a pool with statement_cache_size=0.")
_PROBLEMS: Final = {
    "08": (_LOST, "Check that the server runs and can be reached."),
    "22": ("PostgreSQL cannot save one of the values given", "Check the arguments of the call."),
    "25006": ("PostgreSQL is read-only", "Connect to the primary; a standby takes no writes."),
    "26000": _POOLED,
    "28": ("PostgreSQL rejects the user or the password", "Check both in the DSN, and pg_hba.conf."),
    "3D000": ("the database does not exist", "Create it, or correct its name in the DSN."),
    "3F000": _GONE,
    "40": ("another transaction was in the way", "Retry."),
    "42501": ("the role lacks a privilege", "Grant it USAGE on the schema, and all rights to its tables."),
    "42P01": _GONE,
    "42P05": _POOLED,
    "53100": ("the disk of PostgreSQL is full", "Make room: workers need some, too, to handle what waits."),
    "53300": ("PostgreSQL has no connection left", "Raise max_connections, or give the stores fewer connections."),
    "55P03": ("another transaction holds a lock for too long", "Look for it in pg_stat_activity."),
    "57014": ("PostgreSQL cancelled the statement", "Check statement_timeout, and what is slow."),
    "57P": ("PostgreSQL is starting, stopping or recovering", "Retry when it accepts connections."),
}
"""What the codes of PostgreSQL's errors, or their beginnings, mean, and what to do.
Source: https://www.postgresql.org/docs/current/errcodes-appendix.html"""


def check_texts(*values: str | Secret | None) -> None:
    """Raise `ConfigurationError` if a text contains a lone surrogate or NUL, which PostgreSQL cannot save."""
    texts = [value for value in values if value is not None]
    rules.check_texts(*texts)
    if any("\0" in (one.reveal() if isinstance(one, Secret) else one) for one in texts):
        raise ConfigurationError("the store cannot save one of the values given: it contains a NUL character")


def explained(error: Exception) -> Exception:
    """Return the error to raise for an error of the driver, without its text, which may quote rows or the DSN."""
    if isinstance(error, AsanaError):
        return error
    code = str(getattr(error, "sqlstate", None) or "")
    kind = type(error).__name__
    name = f"{kind}, {code}" if code else kind
    advice = "Check that the server runs and can be reached, and the DSN."
    if isinstance(error, OverflowError) or kind == "DataError" or code.startswith("22"):
        return ConfigurationError(f"the store cannot save one of the values given ({name})")
    if isinstance(error, ValueError):
        return ConfigurationError(f"the DSN is not valid ({name}); use postgresql://user:password@host/database")
    if code:
        unknown = ("PostgreSQL reported an error", "Look up its code, and look into the server's log.")
        problem, advice = next((_PROBLEMS[one] for one in (code, code[:3], code[:2]) if one in _PROBLEMS), unknown)
    elif isinstance(error, TimeoutError):
        problem = "PostgreSQL did not answer in time"
    elif isinstance(error, OSError):
        problem = "PostgreSQL cannot be reached"
        advice = "Check that it runs, the host and port of the DSN, and that it offers TLS if sslmode wants it."
    elif type(error).__module__.startswith("asyncpg"):
        problem, advice = _LOST, "If it persists, check that a lent pool is open."
    else:
        return error
    return StoreUnavailableError(problem=f"{problem} ({name})", advice=advice)


def _milliseconds(timeout: float) -> int:
    """Return a time limit as PostgreSQL takes it."""
    return min(math.ceil(timeout * 1000), 2**31 - 1)


class Pool(Protocol):
    """An ``asyncpg.Pool``, which has no types of its own."""

    def acquire(self, *, timeout: float | None = None) -> Any:
        """Return a connection, when awaited."""


class Connection:
    """A connection while one call uses it. In its statements ``@`` stands for the schema of the store's tables."""

    def __init__(self, raw: Any, schema: str, *, timeout: float) -> None:
        self._raw = raw
        self._prefix = f'"{schema}".'
        self._timeout = _milliseconds(timeout)

    async def is_pooled(self) -> bool:
        """Return whether a pooler such as PgBouncer is in between: it names another process than the server does."""
        pid: int = await self._raw.fetchval("SELECT pg_backend_pid()")
        own: int = self._raw.get_server_pid()
        return pid != own

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Run the block in a transaction.

        The server ends that of a machine that has vanished. Otherwise it would keep its locks for hours.
        """
        begin = "BEGIN ISOLATION LEVEL READ COMMITTED"  # the next statement must see what a lock has waited for
        await self._raw.execute(f"{begin}; SET LOCAL idle_in_transaction_session_timeout = {self._timeout}")
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the connection is lost
                await self._raw.execute("ROLLBACK")
            raise
        await self._raw.execute("COMMIT")

    async def fetch(self, statement: str, *values: object) -> Sequence[Any]:
        """Return the rows."""
        found: Sequence[Any] = await self._raw.fetch(statement.replace("@", self._prefix), *values)
        return found

    async def first(self, statement: str, *values: object) -> Any:
        """Return the first row, or ``None``."""
        return await self._raw.fetchrow(statement.replace("@", self._prefix), *values)

    async def run(self, statement: str, *values: object) -> int:
        """Return how many rows a statement changed."""
        status: str = await self._raw.execute(statement.replace("@", self._prefix), *values)
        return int(status.rpartition(" ")[2])


Operation = Callable[[Connection], Awaitable[T]]


class Batch(Generic[R, T]):
    """Requests that wait share one call: while it runs, the next ones gather.

    Args:
        run: takes the requests of one call; returns the outcome of each, in their order.
        start: starts a call in a task that nobody cancels.
    """

    def __init__(
        self,
        run: Callable[[Sequence[R]], Coroutine[Any, Any, Sequence[T | AsanaError]]],
        start: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
    ) -> None:
        self._run = run
        self._start = start
        self._gathered: list[tuple[R, asyncio.Future[T]]] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, request: R) -> "asyncio.Future[T]":
        """Return the future outcome of a request, which goes on if that is cancelled."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._gathered.append((request, answer))
        if self._task is None or self._task.done():
            self._task = self._start(self._work())  # in the next turn, so others that are ready in this one join
        return answer

    async def _work(self) -> None:
        while self._gathered:
            some, self._gathered = self._gathered[:_AT_ONCE], self._gathered[_AT_ONCE:]
            try:
                outcomes: Sequence[Any] = await self._run([request for request, _ in some])
            except Exception as error:  # noqa: BLE001 - it reaches every caller
                outcomes = [explained(error)] * len(some)
            for (_, answer), outcome in zip(some, outcomes, strict=True):
                if answer.done():
                    continue  # cancelled
                if isinstance(outcome, Exception):
                    answer.set_exception(_copied(outcome))
                else:
                    answer.set_result(outcome)
            await asyncio.sleep(0)  # the callers wake, and what they submit then joins the next call


def shielded(future: "asyncio.Future[T]") -> "asyncio.Future[T]":
    """Return what a caller awaits: if it is cancelled, the call goes on, and asyncio logs no error that nobody read."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return asyncio.shield(future)


def _copied(error: Exception) -> Exception:
    """Return a copy of an error; one raised in several tasks would collect all their tracebacks."""
    copied = copy.copy(error)
    copied.args = error.args
    return copied


class Database:
    """What the parts of `PostgresStore` share; it documents the arguments."""

    def __init__(
        self,
        dsn: str | Pool,
        *,
        secret_box: SecretBox | None = None,
        schema: str = DEFAULT_SCHEMA,
        create: bool = True,
        clock: Callable[[], float] | None = None,
        connections: int = 8,
        timeout: float = 10.0,
        max_operations: int = 10_000,
        max_bytes: int = 64 * 1024**2,
        max_quarantined: int = 1_000,
        max_quarantined_bytes: int = 16 * 1024**2,
    ) -> None:
        self._lent = None if isinstance(dsn, str) else _check_pool(dsn)
        self._dsn = Secret(_check_dsn(dsn) if isinstance(dsn, str) else "")
        self._schema = check_schema(schema)
        self._create_tables = create
        self._clock = clock
        self._connections = check_count("connections", connections)
        self._timeout = check_seconds("timeout", timeout, zero=False)
        self._max_operations = check_count("max_operations", max_operations)
        self._max_bytes = check_count("max_bytes", max_bytes)
        self._quarantine = rules.QuarantineLimits(max_quarantined, max_quarantined_bytes)
        self._sealer = Sealer(secret_box)
        self._thread = None if secret_box is None else ThreadPoolExecutor(1, "asana-webhooks-secret-box")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opens: Batch[None, Any] = Batch(self._open_for, self._spawn)
        self._pool: Any = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._ended = False
        self._operations = 0
        self._bytes = 0

    def _now(self) -> float | None:
        """Return the value of ``$1`` in a statement with `NOW`."""
        return None if self._clock is None else self._clock()

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise ConfigurationError("this store belongs to another event loop; create one in each loop")

    def _check_usable(self) -> None:
        self._check_loop()
        if self._closed:
            raise ConfigurationError("this store is closed; create a new one")

    def _check_room(self, adds: int) -> None:
        """Raise `StoreFullError` unless a call that adds *adds* bytes would be accepted now."""
        if adds > self._max_bytes:
            raise StoreFullError(problem="the delivery is larger than max_bytes", advice="Raise max_bytes.")
        if self._operations >= self._max_operations or self._bytes + adds > self._max_bytes:
            advice = "Look why PostgreSQL is slow, or raise max_operations and max_bytes."
            raise StoreFullError(problem="too many operations or bytes are waiting", advice=advice)

    @contextmanager
    def _uncounting(self, count: int, adds: int = 0) -> Iterator[None]:
        """Run the block, which ends so many operations that are counted towards the limits."""
        try:
            yield
        finally:
            self._operations -= count
            self._bytes -= adds

    def _count(self, adds: int = 0) -> None:
        self._operations += 1
        self._bytes += adds

    async def _counted(self, call: Coroutine[Any, Any, T], adds: int = 0) -> T:
        """Run a call that goes on if this is cancelled, and count it towards the limits until it ends."""

        async def run() -> T:
            with self._uncounting(1, adds):
                return await call

        self._count(adds)
        return await shielded(self._spawn(run()))

    def _spawn(self, call: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a call that a cancelled caller leaves running: the driver must not be cancelled inside a statement."""
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _do(self, operation: Operation[T], *, transaction: bool = False, limited: bool = False) -> T:
        """Run an operation. If it is *limited*, raise `StoreFullError` if too many are waiting."""
        self._check_usable()
        if not limited:
            return await shielded(self._spawn(self._run(operation, transaction=transaction)))
        self._check_room(0)
        return await self._counted(self._run(operation, transaction=transaction))

    async def _fetch(self, statement: str, *values: object, limited: bool = False) -> Sequence[Any]:
        """Return the rows of one statement."""
        return await self._do(lambda db: db.fetch(statement, *values), limited=limited)

    async def _change(self, statement: str, *values: object, limited: bool = False) -> int:
        """Return how many rows one statement changed."""
        return await self._do(lambda db: db.run(statement, *values), limited=limited)

    async def _run(self, operation: Operation[T], *, transaction: bool = False) -> T:
        """Run an operation in the present task, and explain what the driver raises."""
        try:
            return await self._attempt(await self._opened(), operation, transaction=transaction)
        except Exception as error:  # noqa: BLE001 - every error of the driver
            failure = explained(error)
        raise failure  # outside of the handler, so that it has no context: that may quote rows

    async def _attempt(self, pool: Any, operation: Operation[T], *, transaction: bool = False) -> T:
        raw = await pool.acquire(timeout=self._timeout)
        late = asyncio.get_running_loop().call_later(self._timeout, _terminate, raw)
        connection = Connection(raw, self._schema, timeout=self._timeout)
        try:
            if not transaction:
                return await operation(connection)
            async with connection.transaction():
                return await operation(connection)
        except Exception as error:
            if late.when() <= asyncio.get_running_loop().time():
                raise TimeoutError from None
            if not isinstance(error, AsanaError) and getattr(error, "sqlstate", None) in {None, "25006"}:
                _terminate(raw)  # it is in doubt, or leads to a server that became a standby
            raise
        finally:
            late.cancel()
            with suppress(Exception):  # the operation's outcome is known
                await pool.release(raw, timeout=self._timeout)

    async def _opened(self) -> Any:
        """Return the pool. The first call connects, checks the server, and creates the tables if they are missing."""
        return await self._opens.submit(None) if self._pool is None else self._pool

    async def _open_for(self, waiting: Sequence[None]) -> Sequence[Any]:
        """Open for all that wait, who share its failure, too: else each would wait for a time limit after the other."""
        if self._ended:
            raise ConfigurationError("this store is closed; create a new one")
        if self._pool is None:
            self._pool = await self._open()
        return [self._pool] * len(waiting)

    async def _open(self) -> Any:
        pool: Any = self._lent
        try:
            if self._lent is None:
                pool = await self._create(statement_cache_size=0)  # behind a pooler, the next transaction has lost them
                if not await self._attempt(pool, Connection.is_pooled):
                    await _close(pool)
                    pool = await self._create(server_settings=self._settings())
            await self._prepare(pool)
        except BaseException:
            if self._lent is None and pool is not None:
                pool.terminate()
            raise
        return pool

    def _settings(self) -> dict[str, str]:
        return {
            "plan_cache_mode": "force_custom_plan",  # one made while a table was empty would be slow when it is full
            "default_transaction_isolation": "read committed",
            # The server does not notice that a connection is closed while that waits for a lock: these would use it up.
            "statement_timeout": str(_milliseconds(self._timeout)),
        }

    async def _create(self, **options: Any) -> Any:
        size, dsn = self._connections, self._dsn.reveal()
        options |= {"min_size": 0, "max_size": size, "timeout": self._timeout}
        return await _driver().create_pool(dsn, reset=_reset_nothing, **options)  # calls leave no state in a connection

    async def _prepare(self, pool: Any) -> None:
        async def check(db: Connection) -> None:
            await check_settings(db)
            await prepare(db, schema=self._schema, create=self._create_tables)

        await self._attempt(pool, check)

    async def _with_box(self, call: Callable[[], T]) -> T:
        """Run what seals or opens secrets: in a thread, because a box may block."""
        if self._thread is None:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _close_pool(self) -> None:
        """Wait for the calls in flight, which all have a time limit, and close the pool unless it is lent."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._ended = True
        pool, self._pool = self._pool, None
        if pool is not None and self._lent is None:
            await _close(pool)
        if self._thread is not None:
            self._thread.shutdown(wait=False)


def _terminate(raw: Any) -> None:
    with suppress(Exception):  # it is closed, and back in its pool
        raw.terminate()


async def _close(pool: Any) -> None:
    try:
        await asyncio.wait_for(pool.close(), 1)
    except Exception:  # noqa: BLE001 - a frozen server, for one
        pool.terminate()


async def _reset_nothing(_: object) -> None:
    pass


def _driver() -> Any:
    try:
        return import_module("asyncpg")  # it comes with an extra, and without types
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "PostgresStore needs asyncpg; install it with: pip install 'asana-webhooks[postgres]'", name=missing.name
        ) from None


def _check_dsn(dsn: str) -> str:
    if not re.match("postgres(ql)?://", dsn):
        # The message leaves out the DSN, which may contain a password.
        raise ConfigurationError("the DSN of a PostgresStore must look like postgresql://user:password@host/database")
    check_texts(dsn)
    _driver()
    return dsn


def _check_pool(pool: Pool) -> Pool:
    if not callable(getattr(pool, "acquire", None)) or isinstance(pool, type):
        raise ConfigurationError(f"a PostgresStore needs a DSN or an asyncpg.Pool, not {kind_of(pool)}")
    return pool
