"""The database file: made and opened safely, and what SQLite's errors about it mean.

The other modules import `sqlite3` from here. It is the one of the standard library, or pysqlite3 (the extra
``sqlite``), which brings a current SQLite. Only one of the two may open the file in one process: each would drop the
locks of the other.
"""

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.store.sqlite.schema import prepare

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        import pysqlite3 as sqlite3
    except ImportError:
        import sqlite3

__all__ = ["LONG_LOG", "DatabaseFile", "is_passing", "sqlite3", "unavailable"]

LONG_LOG = 64 * 1024**2
"""Bytes that the write-ahead log keeps when it is emptied; a longer one is emptied by hand."""

_PROBLEMS = {
    sqlite3.SQLITE_BUSY: "another connection holds the database for too long",
    sqlite3.SQLITE_LOCKED: "another connection holds the database for too long",
    sqlite3.SQLITE_FULL: "the disk is full, or the file may not grow any more",
    sqlite3.SQLITE_READONLY: "the database cannot be written: it is read-only",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened",
    sqlite3.SQLITE_PERM: "the database file may not be accessed",
    sqlite3.SQLITE_IOERR: "reading or writing the database file failed",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database, or is damaged",
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

_OPENING = threading.Lock()
"""Held by whoever opens one of the files, for all stores: two threads making the same one would get into each other's
way, and to close any descriptor of a file drops the locks this process has on it."""


def unavailable(error: sqlite3.Error) -> StoreUnavailableError:
    """Return what to raise for an error of SQLite; its own text stays out, it may quote from the data."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    problem = f"{_PROBLEMS.get(code, 'SQLite failed')} ({name})"
    if code in _DAMAGED:
        return StoreUnavailableError(problem=problem, advice="Check the disk, and restore the file from a backup.")
    return StoreUnavailableError(problem=problem)


def is_passing(error: sqlite3.Error) -> bool:
    """Tell whether the connection is as good as before: the database was only locked or full."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}


class DatabaseFile:
    """One database file, and how to connect to it.

    Its methods are called in the threads of the store.

    Args:
        path: of the file; its directory must exist.
        busy_timeout: seconds to wait while another connection writes.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float) -> None:
        if str(path) in {"", ":memory:"}:
            raise ConfigurationError("a SQLite store needs a file; for one in memory use MemoryStore or 'memory:'")
        self._path = Path(path).absolute()
        self._busy_timeout = busy_timeout
        self._log = self._beside("-wal")
        self.opened: tuple[int, int] | None = None
        """Device and inode of the file that was opened first: which file it is, whatever its name."""

    def __str__(self) -> str:
        return str(self._path)

    def _beside(self, suffix: str) -> Path:
        """Return the path of a file that belongs to the database, where SQLite looks for those."""
        return Path(os.path.realpath(self._path) + suffix)

    def log_bytes(self) -> int:
        """Return how many bytes the write-ahead log has."""
        found = _stat(self._log)
        return found.st_size if found else 0

    def log_identity(self) -> tuple[int, int] | None:
        """Tell which file the write-ahead log is; for a connection it must stay the one it began with."""
        return _identity(self._log)

    def is_in_place(self) -> bool:
        """Tell whether the path still leads to the file that was opened first."""
        return _identity(self._path) == self.opened

    def connect(self) -> sqlite3.Connection:
        """Open the database to write, making the file and its tables the first time.

        Returns:
            The connection, for this thread only. A store has one of these at a time: it alone also empties the log,
            which in some versions of SQLite must not happen beside a commit.

        Raises:
            ConfigurationError: the path cannot work, or the file is not ours.
            StoreUnavailableError: it cannot be opened now.
        """
        return self._connect(self._open)

    def connect_to_read(self) -> sqlite3.Connection:
        """Open the database to read, after `connect` has made it; the same errors.

        Returns:
            The connection, for this thread only. It can neither write nor empty the log, not even when it is closed.
        """
        return self._connect(self._open_to_read)

    def _connect(self, opening: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
        with _OPENING:
            try:
                self._secure()
                return opening()
            except OSError as error:
                raise StoreUnavailableError(
                    problem=f"the database file cannot be made or kept private ({error.strerror})"
                ) from error
            except sqlite3.Error as error:
                raise unavailable(error) from error

    def _secure(self) -> None:
        """Make the file, readable for its owner alone; SQLite gives ``-wal`` and ``-shm`` the same mode."""
        if self.opened is not None and not self.is_in_place():
            # Another one knows none of our registrations, and would answer every delivery with "unknown".
            what = "replaced by another; restart to use that one" if self._path.exists() else "deleted"
            raise StoreUnavailableError(problem=f"the database file was {what}")
        if self.log_bytes() and self._is_empty():  # in this order: whoever makes the file now makes its log last
            # SQLite would throw the log away, and all the deliveries in it.
            raise StoreUnavailableError(
                problem="the database file is missing or empty, but its write-ahead log is there",
                advice="Put the file back beside its log; or, to begin anew, remove the log.",
            )
        if not self._path.parent.is_dir():
            raise ConfigurationError(f"the directory {self._path.parent} does not exist")
        if self._path.exists() and not self._path.is_file():  # a directory, a pipe, a device: its mode is not ours
            raise ConfigurationError(f"{self._path} is no regular file, and so no database file")
        # Only ever opened when it is new: closing any descriptor of a file drops this process's locks on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self._path.chmod(0o600)  # the umask may have taken even that
        for suffix in ("", "-wal", "-shm"):
            _tighten(self._beside(suffix))
        if not os.access(self._path, os.R_OK | os.W_OK):
            # SQLite would go on read-only, and leave a log behind that stays read-only for ever.
            raise StoreUnavailableError(problem="the database file may not be read and written")

    def _is_empty(self) -> bool:
        found = _stat(self._path)
        return found is None or found.st_size == 0

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._busy_timeout, isolation_level=None)
        try:
            self._use_wal(connection)
            # FULL: a commit survives a power cut, not only the end of the process.
            connection.execute("PRAGMA synchronous = FULL")
            # What is deleted is overwritten: dropped secrets, and bodies.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA journal_size_limit = {LONG_LOG}")
            prepare(connection)
        except BaseException:
            connection.close()
            raise
        self.opened = self.opened or _identity(self._path)
        return connection

    def _open_to_read(self) -> sqlite3.Connection:
        # Not query_only: only with the file itself open read-only, the last to close does not empty the log.
        uri = f"{self._path.as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=self._busy_timeout, isolation_level=None)

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        give_up_at = time.monotonic() + self._busy_timeout
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                # While another process is switching, SQLite says busy at once, whatever the timeout.
                if not is_passing(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.005)
            else:
                break
        if mode != "wal":
            raise StoreUnavailableError(problem="this file system cannot hold SQLite's write-ahead log")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _identity(path: Path) -> tuple[int, int] | None:
    found = _stat(path)
    return (found.st_dev, found.st_ino) if found else None


def _tighten(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            path.chmod(mode & 0o700)
