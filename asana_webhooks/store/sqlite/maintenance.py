"""One database with two threads: one reads; one writes, and maintains the file.

Maintenance keeps the log and the file short, detects other writers, and makes backups.
"""

import asyncio
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.store.rules import QuarantineLimits
from asana_webhooks.store.secret_box import Sealer, SecretBox
from asana_webhooks.store.sqlite.file import LONG_LOG, DatabaseFile, create_private, sqlite3, unavailable
from asana_webhooks.store.sqlite.transactions import Operation, TransactionQueue

__all__ = ["Database", "back_up", "is_affected", "named"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_INTERVAL = 5.0
"""Seconds between two attempts to empty the log while a reader prevents it."""

READER_TIMEOUT = 250
"""Milliseconds to wait for readers when emptying the log; writers wait meanwhile."""

CHECK_INTERVAL = 1.0
"""Seconds between two checks for other writers, which run before transactions."""

PAGE = 4096
"""Bytes of a page of the file."""

FREE_PAGES = 1024
"""How many unused pages the file keeps, so that it does not shrink and grow all the time."""

DISK_RESERVE = 16 * 1024**2
"""Free bytes on the disk below which the store takes no deliveries. Workers need the rest: handling one writes, too."""

STEP_TIME = 0.003
"""Seconds that one step of giving space back takes at most, without its commit."""

_STUCK = (
    "the write-ahead log grows and cannot be emptied: another connection (a backup, an SQL shell or a hung process) "
    "keeps reading the database"
)
_SHARED = (
    "another connection also writes to the database file, and SQLite %.20s can then lose commits; install "
    "asana-webhooks[sqlite], use SQLite 3.51.3 or later (or 3.50.7, or 3.44.6), or use one store in one process; "
    "see https://www.sqlite.org/wal.html"
)


def is_affected(version: tuple[int, int, int]) -> bool:
    """Return whether a version of SQLite can lose commits when one connection empties the log while another commits.

    Fixed in 3.51.3 and later, and in the branches 3.50 (from 3.50.7) and 3.44 (from 3.44.6).
    Source: https://www.sqlite.org/wal.html
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)
    return not fixed


class Writer(TransactionQueue):
    """The queue of transactions that write. Its thread also maintains the file.

    SQLite restarts its log once it has copied all of it into the database and no reader uses an older state. A long
    reader, such as a backup or an SQL shell with an open transaction, lets the log grow. Above `LONG_LOG` bytes, this
    class empties the log. If that fails, it logs a warning and adds it to `problems`.
    """

    name: ClassVar = "asana-webhooks-writer"
    begin: ClassVar = "BEGIN IMMEDIATE"

    def __init__(self, file: DatabaseFile, *, max_operations: int, max_bytes: int) -> None:
        super().__init__(file, self._open, max_operations=max_operations, max_bytes=max_bytes)
        self._log_file: tuple[int, int] | None = None
        self._is_stuck = False
        """Whether emptying a long log failed, and the log is still long."""
        self._tried_at = 0.0
        self._data_version = 0
        self._looked_at = 0.0
        self._is_shared = False
        self._has_shrunk = False

    def _open(self) -> sqlite3.Connection:
        connection = self._file.connect()
        self._log_file = self._file.log_identity()
        self._data_version = _read(connection, "data_version")
        return connection

    def _before(self, connection: sqlite3.Connection) -> None:
        if self._file.log_identity() != self._log_file:
            # Copy earlier commits into the database. Later commits would be lost with the deleted log.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint")
            raise StoreUnavailableError(
                problem="the database's write-ahead log was deleted",
                advice="Shut this process down cleanly, which keeps acknowledged deliveries, and start it again.",
            )
        if time.monotonic() >= self._looked_at + CHECK_INTERVAL:
            with suppress(sqlite3.Error):  # the following transaction raises the same error
                self.look_for_others(connection)

    def _after(self, connection: sqlite3.Connection) -> None:
        if self._has_shrunk:
            self._has_shrunk = False
            connection.execute("PRAGMA wal_checkpoint")  # shortens the file
        length = self._file.log_bytes()
        if length > LONG_LOG and (not self._is_stuck or time.monotonic() >= self._tried_at + RETRY_INTERVAL):
            self._tried_at = time.monotonic()
            if not _empty(connection) and not self._is_stuck:
                self._is_stuck = True
                _log.warning("%.200a has a log of %d bytes: %.200s; retrying", str(self._file), length, _STUCK)
            length = self._file.log_bytes()
        if self._is_stuck and length <= LONG_LOG:
            self._is_stuck = False
            _log.info("the write-ahead log of %.200a is short again", str(self._file))

    def check_disk(self, connection: sqlite3.Connection) -> None:
        """Raise `StoreUnavailableError` if the disk is nearly full, and the file has no unused pages to make up."""
        free = shutil.disk_usage(self._file.directory).free
        if free < DISK_RESERVE and free + PAGE * _read(connection, "freelist_count") < DISK_RESERVE:
            problem = f"less than {DISK_RESERVE // 1024**2} MiB are free on the disk, which workers need"
            raise StoreUnavailableError(problem=problem, advice="Make room.")

    def give_back(self, connection: sqlite3.Connection) -> bool:
        """Give some unused pages back to the file system, within a transaction. False: there is nothing left to do."""
        before = free = _read(connection, "freelist_count")
        end = time.monotonic() + STEP_TIME
        while free > FREE_PAGES and time.monotonic() < end:
            connection.execute("PRAGMA incremental_vacuum(1)")  # executed once, it never gives back more than one
            free -= 1
        free = _read(connection, "freelist_count")
        self._has_shrunk = free <= FREE_PAGES
        return FREE_PAGES < free < before

    def look_for_others(self, connection: sqlite3.Connection) -> None:
        """Check whether another connection has written. If this SQLite can then lose commits, log it once."""
        self._looked_at = time.monotonic()
        # It changes when another connection has committed: https://www.sqlite.org/pragma.html#pragma_data_version
        before, self._data_version = self._data_version, _read(connection, "data_version")
        is_shared = self._data_version != before and is_affected(sqlite3.sqlite_version_info)
        if is_shared and not self._is_shared:  # our own reader never writes
            self._is_shared = True
            _log.warning("%.200a: %.500s", str(self._file), _SHARED % sqlite3.sqlite_version)

    @property
    def problems(self) -> tuple[str, ...]:
        """Problems for an operator to fix. Safe to read in any thread."""
        stuck = (_STUCK,) if self._is_stuck else ()
        return (*stuck, _SHARED % sqlite3.sqlite_version) if self._is_shared else stuck


class Database:
    """What the parts of `SQLiteStore` share; it documents the arguments."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        secret_box: SecretBox | None = None,
        clock: Callable[[], float] = time.time,
        # Timeouts
        busy_timeout: float = 5.0,
        # Limits
        max_operations: int = 10_000,
        max_bytes: int = 64 * 1024**2,
        max_quarantined: int = 1_000,
        max_quarantined_bytes: int = 16 * 1024**2,
    ) -> None:
        check_count("max_operations", max_operations)
        check_count("max_bytes", max_bytes)
        self._file = DatabaseFile(path, busy_timeout=check_seconds("busy_timeout", busy_timeout))
        self._clock = clock
        self._quarantine = QuarantineLimits(max_quarantined, max_quarantined_bytes)
        self._sealer = Sealer(secret_box)
        self._writer = Writer(self._file, max_operations=max_operations, max_bytes=max_bytes)
        self._reader = TransactionQueue(self._file, self._connect_to_read, max_operations=max_operations)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._closing = asyncio.Lock()
        self._recent: dict[int, float] = {}
        """When the last deliveries of registrations were stored, by number, until that is saved."""

    def _connect_to_read(self) -> sqlite3.Connection:
        if self._file.opened is None:
            self._writer.connect()  # a reader cannot create tables, and would leave a log behind
        return self._file.connect_to_read()

    def _check_loop(self) -> None:
        self._file.claim()
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise ConfigurationError("this store belongs to another event loop; create one in each loop")

    def _check_usable(self) -> None:
        self._check_loop()
        if self._closed:
            raise ConfigurationError("this store is closed; create a new one")

    def _write(self, operation: Operation[T], *, adds: int | None = None) -> asyncio.Future[T]:
        """Run a write. If it *adds* data, so many bytes, raise `StoreFullError` if too many are waiting."""
        self._check_usable()
        return self._writer.submit(operation, adds=adds)

    def _read(self, operation: Operation[T]) -> asyncio.Future[T]:
        self._check_usable()
        return self._reader.submit(operation, adds=0)


def named(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    """Yield the rows with the names of their columns."""
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor)


def _read(connection: sqlite3.Connection, pragma: str) -> int:
    (number,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(number)


def _empty(connection: sqlite3.Connection) -> bool:
    timeout = _read(connection, "busy_timeout")
    connection.execute(f"PRAGMA busy_timeout = {READER_TIMEOUT}")
    try:
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {timeout}")
    return not busy


def back_up(file: DatabaseFile, target: Path, cancelled: threading.Event) -> None:
    """Copy the database, which the store has opened, into a new file; see `SQLiteStore.backup`. It blocks."""
    if not target.parent.is_dir() or target.exists():
        what = "file already exists" if target.exists() else "directory does not exist"
        raise ConfigurationError(f"the backup {target} cannot be written: the {what}")
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        create_private(part)
        connection = file.connect_to_read()
        try:
            connection.set_progress_handler(cancelled.is_set, 1000)
            connection.execute("VACUUM INTO ?", (str(part),))
        finally:
            file.disconnect(connection)
        _sync(part, os.O_RDWR)
        if not cancelled.is_set():
            part.rename(target)
            if os.name != "nt":  # Windows opens no directories
                _sync(target.parent, os.O_RDONLY)
    except sqlite3.Error as error:
        raise unavailable(error) from error
    except OSError as error:
        raise StoreUnavailableError(problem=f"the backup cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
