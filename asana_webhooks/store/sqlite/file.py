"""The database file: made and opened safely, and what SQLite's errors about it mean."""

import contextlib
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.store.sqlite.schema import prepare

__all__ = ["DatabaseFile", "is_passing", "unavailable"]

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


def unavailable(error: sqlite3.Error) -> StoreUnavailableError:
    """Return what to raise for an error of SQLite; its own text stays out, it may quote from the data."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StoreUnavailableError(problem=f"{_PROBLEMS.get(code, 'SQLite failed')} ({name})")


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
        self._connecting = threading.Lock()
        self._opened: tuple[int, int] | None = None
        """Device and inode of the file that was opened first: which file it is, whatever its name."""

    def is_in_place(self) -> bool:
        """Tell whether the path still leads to the file that was opened first."""
        return self._identity() == self._opened

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def connect(self) -> sqlite3.Connection:
        """Open the database, making the file and its tables the first time.

        Returns:
            The connection, for this thread only.

        Raises:
            ConfigurationError: the path cannot work, or the file is not ours.
            StoreUnavailableError: it cannot be opened now.
        """
        with self._connecting:  # two threads making the same file would get into each other's way
            try:
                self._secure()
                return self._open()
            except OSError as error:
                raise StoreUnavailableError(
                    problem=f"the database file cannot be made or kept private ({error.strerror})"
                ) from error
            except sqlite3.Error as error:
                raise unavailable(error) from error

    def _secure(self) -> None:
        """Make the file, readable for its owner alone; SQLite gives ``-wal`` and ``-shm`` the same mode."""
        if self._opened is not None and not self.is_in_place():
            # Another one knows none of our registrations, and would answer every delivery with "unknown".
            what = "replaced by another; restart to use that one" if self._path.exists() else "deleted"
            raise StoreUnavailableError(problem=f"the database file was {what}")
        if not self._path.parent.is_dir():
            raise ConfigurationError(f"the directory {self._path.parent} does not exist")
        if self._path.is_dir():
            raise ConfigurationError(f"{self._path} is a directory, not a database file")
        # Only ever opened when it is new: closing any descriptor of a file drops this process's locks on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        for suffix in ("", "-wal", "-shm"):
            _tighten(self._path.with_name(self._path.name + suffix))
        if not os.access(self._path, os.R_OK | os.W_OK):
            # SQLite would go on read-only, and leave a log behind that stays read-only for ever.
            raise StoreUnavailableError(problem="the database file may not be read and written")

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._busy_timeout, isolation_level=None)
        try:
            self._use_wal(connection)
            # FULL: a commit survives a power cut, not only the end of the process.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA journal_size_limit = {64 * 1024**2}")
            prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._opened = self._opened or self._identity()
        return connection

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


def _tighten(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            path.chmod(mode & 0o700)
