"""What the writing thread does beside its transactions: it seals old secrets, empties the log, and looks for others."""

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from asana_webhooks.errors import StoreUnavailableError
from asana_webhooks.store.secret_box import Safe
from asana_webhooks.store.sqlite.file import DatabaseFile, unavailable
from asana_webhooks.store.sqlite.log import LogWatch
from asana_webhooks.store.sqlite.resealing import has_plain_text, reseal
from asana_webhooks.store.sqlite.users import Users, is_affected

__all__ = ["Keeper"]

_log = logging.getLogger(__name__)

WAIT = 250
"""Milliseconds that readers get to end, when the log is to be emptied; writers wait meanwhile."""

_ADVICE = (
    "use SQLite 3.51.3 or later (or 3.50.7, or 3.44.6), or keep to one store in one process; see "
    "https://www.sqlite.org/wal.html"
)
_SHARED = f"another store has the database file open, too, and SQLite %.20s can lose commits then; {_ADVICE}"
_SHARED_LOG = f"another store has %.200a open, too, and SQLite %.20s can lose commits then; {_ADVICE}"
_DAMAGED = (
    "the write-ahead log was damaged when this store was opened, and acknowledged deliveries may be lost; an error was "
    "logged that says more"
)
_DAMAGED_LOG = (
    "the write-ahead log of %.200a is damaged: %s. What stands before that is used. Acknowledged deliveries behind it "
    "may be lost, and Asana does not send them again: look at the disk, and fetch the current state of what your "
    "webhooks watch. The log as it was %s"
)


class Keeper:
    """Looks after one database file; its methods are called in the writing thread, unless they say otherwise.

    Args:
        file: the database.
        safe: seals its secrets.
        log: decides about its write-ahead log.
        clock: returns seconds that only ever grow.
    """

    def __init__(
        self, file: DatabaseFile, *, safe: Safe, log: LogWatch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.log = log
        self._file = file
        self._safe = safe
        self._clock = clock
        self._its_log: tuple[int, int] | None = None
        self._users: Users | None = None
        self._is_shared = False
        self._was_open = False
        self._was_damaged = False
        self._told_of_plain_text = False
        self._told_of_version = False

    def connect(self) -> sqlite3.Connection:
        """Count as a user of the database, open it to write, and see that its log is whole and its secrets are sealed.

        Raises:
            ConfigurationError: see `DatabaseFile.connect`.
            StoreUnavailableError: the same.
        """
        with ExitStack() as undo:
            self._users = Users(self._file.beside("-users"))
            undo.callback(self.disconnected)
            self._users.join()
            if self._users.was_first and not self._was_open:
                self._check_log()
            connection = self._file.connect()
            undo.callback(connection.close)
            try:
                self._see_to_secrets(connection)
            except sqlite3.Error as error:
                raise unavailable(error) from error
            undo.pop_all()
        if self._was_damaged and not self._was_open:
            with suppress(sqlite3.Error):
                _empty(connection)  # or who comes next would take the same damage for another
        self._was_open = True
        self._its_log = self._file.log()
        self.look_for_others()
        return connection

    def _check_log(self) -> None:
        """Log once if deliveries may be lost because the log is damaged, and keep it as it is."""
        damage = None if self._was_damaged else self._file.log_damage()
        if damage is None:
            return
        self._was_damaged = True
        try:
            copy = f"is kept in {str(self._file.keep_log())!a:.300}"
        except OSError as error:
            copy = f"could not be copied ({error.strerror})"
        _log.error(_DAMAGED_LOG, str(self._file), damage, copy)

    def _see_to_secrets(self, connection: sqlite3.Connection) -> None:
        if self._safe.key_id is not None:
            reseal(connection, self._safe, str(self._file))
        elif has_plain_text(connection):
            self.tell_of_plain_text()

    def ready(self, connection: sqlite3.Connection) -> None:
        """Refuse to write to a log that has been deleted.

        Raises:
            StoreUnavailableError: it has been.
        """
        if self._file.log() == self._its_log:
            return
        # What was written goes into the file now; what came next would go where nobody finds it again.
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint")
        raise StoreUnavailableError(
            problem="the database's write-ahead log was deleted",
            advice="Stop this process in good order and start it again; it still has what it acknowledged.",
        )

    def disconnected(self) -> None:
        """Count as a user no more."""
        if self._users is not None:
            self._users.leave()
            self._users = None

    def tell_of_plain_text(self) -> None:
        """Log once that secrets lie in the file as plain text, unless somebody said that this is fine. Any thread."""
        if self._safe.warns and not self._told_of_plain_text:
            self._told_of_plain_text = True
            _log.warning(
                "%.200a holds the secrets of webhooks in plain text: whoever can read the file or a backup of it can "
                "forge deliveries. Give the store a secret_box, such as asana_webhooks.store.fernet.FernetBox, or "
                "secret_box=PLAIN_TEXT if that is fine",
                str(self._file),
            )

    # The log

    def begun(self) -> None:
        """Look at the log, before anything is written."""
        if self.log.see(self._file.log_bytes()) == "short again":
            _log.info("the write-ahead log of %.200a could be emptied again", str(self._file))

    def settled(self, connection: sqlite3.Connection) -> None:
        """Empty the log after a transaction, if it was long before."""
        if not self.log.should_empty(now=self._clock()):
            return
        if _empty(connection):
            self.begun()
        elif self.log.failed(now=self._clock()) == "stuck":
            _log.warning(
                "the write-ahead log of %.200a has %d bytes and cannot be emptied: another connection keeps reading "
                "the database, such as a backup, an SQL shell or a process that hangs. With more than %d bytes, "
                "nothing new is taken",
                str(self._file),
                self._file.log_bytes(),
                self.log.max_bytes,
            )

    # Others

    def look_for_others(self) -> None:
        """Find out whether others use the file, and log once if that is dangerous with this SQLite."""
        affected = is_affected(sqlite3.sqlite_version_info)
        self._is_shared = affected and self._users is not None and self._users.are_several()
        if self._is_shared and not self._told_of_version:
            self._told_of_version = True
            _log.warning(_SHARED_LOG, str(self._file), sqlite3.sqlite_version)

    @property
    def problems(self) -> tuple[str, ...]:
        """What an operator should see to. Any thread."""
        damaged = (_DAMAGED,) if self._was_damaged else ()
        shared = (_SHARED % sqlite3.sqlite_version,) if self._is_shared else ()
        return (*damaged, *self.log.problems, *shared)


def _empty(connection: sqlite3.Connection) -> bool:
    (timeout,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {WAIT}")
    try:
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {timeout}")
    return not busy
