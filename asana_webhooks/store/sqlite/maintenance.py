"""What the writing thread does beside its transactions: it watches the write-ahead log, and for others who write."""

import logging
import time
from contextlib import suppress

from asana_webhooks.errors import StoreUnavailableError
from asana_webhooks.store.sqlite.file import LONG_LOG, DatabaseFile, sqlite3

__all__ = ["Maintenance", "is_affected"]

_log = logging.getLogger(__name__)

TRY_AGAIN = 5.0
"""Seconds between two attempts to empty a log that somebody reads."""

READERS_WAIT = 250
"""Milliseconds that readers get to end, when the log is to be emptied; writers wait meanwhile."""

LOOK_AGAIN = 1.0
"""Seconds after which the next transaction looks for others who write."""

_STUCK = "the write-ahead log cannot be emptied and grows: something keeps reading the database"
_ADVICE = (
    "install asana-webhooks[sqlite], use SQLite 3.51.3 or later (or 3.50.7, or 3.44.6), or keep to one store in one "
    "process; see https://www.sqlite.org/wal.html"
)
_SHARED = f"another connection writes to the database file, too, and SQLite %.20s can lose commits then; {_ADVICE}"
_SHARED_LOG = f"another connection writes to %.200a, too, and SQLite %.20s can lose commits then; {_ADVICE}"


def is_affected(version: tuple[int, int, int]) -> bool:
    """Tell whether a version of SQLite can lose commits when one connection empties the log while another commits.

    Fixed in 3.51.3, 3.50.7 and 3.44.6, and what follows each.
    Source: https://www.sqlite.org/wal.html
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)
    return not fixed


class Maintenance:
    """Looks after one database file; its methods are called in the writing thread.

    SQLite empties its log when it has copied all of it into the database, which needs a moment without readers of old
    states. A reader that stays, such as a backup or an SQL shell with an open transaction, lets the log grow. From
    `LONG_LOG` bytes on, the log is emptied by hand; when that fails, the operator hears of it.

    Args:
        file: the database.
    """

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._log_file: tuple[int, int] | None = None
        self._is_stuck = False
        """Whether the log was long and could not be emptied, and has not become short since."""
        self._tried_at = 0.0
        self._data_version: int | None = None
        self._looked_at = 0.0
        self._is_shared = False

    def connect(self) -> sqlite3.Connection:
        """Open the database to write; see `DatabaseFile.connect`."""
        connection = self._file.connect()
        self._log_file = self._file.log_identity()
        self._data_version = None
        with suppress(sqlite3.Error):
            self._data_version = _data_version(connection)
        return connection

    def before(self, connection: sqlite3.Connection) -> None:
        """Look at the files before a transaction.

        Raises:
            StoreUnavailableError: the log has been deleted.
        """
        if self._file.log_identity() != self._log_file:
            # What was written goes into the file now; what came next would go where nobody finds it again.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint")
            raise StoreUnavailableError(
                problem="the database's write-ahead log was deleted",
                advice="Stop this process in good order and start it again; it still has what it acknowledged.",
            )
        if time.monotonic() >= self._looked_at + LOOK_AGAIN:
            with suppress(sqlite3.Error):  # the transaction that follows meets the same trouble, and says so
                self.look_for_others(connection)

    def after(self, connection: sqlite3.Connection) -> None:
        """Empty the log after a transaction, if it is long."""
        length = self._file.log_bytes()
        if length > LONG_LOG and (not self._is_stuck or time.monotonic() >= self._tried_at + TRY_AGAIN):
            self._tried_at = time.monotonic()
            if not _empty(connection) and not self._is_stuck:
                self._is_stuck = True
                _log.warning(
                    "the write-ahead log of %.200a has %d bytes and cannot be emptied: another connection keeps "
                    "reading the database, such as a backup, an SQL shell or a process that hangs",
                    str(self._file),
                    length,
                )
            length = self._file.log_bytes()
        if self._is_stuck and length <= LONG_LOG:
            self._is_stuck = False
            _log.info("the write-ahead log of %.200a could be emptied again", str(self._file))

    def look_for_others(self, connection: sqlite3.Connection) -> None:
        """Find out whether another connection has written, and log once if that is dangerous with this SQLite."""
        self._looked_at = time.monotonic()
        if self._is_shared or not is_affected(sqlite3.sqlite_version_info):
            return
        before, self._data_version = self._data_version, _data_version(connection)
        if before is not None and self._data_version != before:  # our own reader never writes
            self._is_shared = True
            _log.warning(_SHARED_LOG, str(self._file), sqlite3.sqlite_version)

    @property
    def problems(self) -> tuple[str, ...]:
        """What an operator should see to. Any thread."""
        stuck = (_STUCK,) if self._is_stuck else ()
        shared = (_SHARED % sqlite3.sqlite_version,) if self._is_shared else ()
        return (*stuck, *shared)


def _data_version(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another connection has committed.

    Source: https://www.sqlite.org/pragma.html#pragma_data_version
    """
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


def _empty(connection: sqlite3.Connection) -> bool:
    (timeout,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {READERS_WAIT}")
    try:
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {timeout}")
    return not busy
