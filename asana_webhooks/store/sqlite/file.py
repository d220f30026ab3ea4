"""The database file: create and open it safely, and explain SQLite's errors.

The other modules import `sqlite3` from here. It is pysqlite3 (the extra ``sqlite``, with a current SQLite) if
installed, else the standard library's module. Only one of the two may open the file in one process: each would drop
the locks of the other.
"""

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.store.sqlite.schema import is_ready, prepare

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        import pysqlite3 as sqlite3
    except ImportError:
        import sqlite3

__all__ = ["LONG_LOG", "DatabaseFile", "is_transient", "sqlite3", "unavailable"]

_log = logging.getLogger(__name__)

LONG_LOG = 64 * 1024**2
"""Target size of the write-ahead log in bytes. SQLite shrinks the file to it; `Writer` empties a longer log."""

_PROBLEMS = {
    sqlite3.SQLITE_BUSY: "another connection locks the database for too long",
    sqlite3.SQLITE_LOCKED: "another connection locks the database for too long",
    sqlite3.SQLITE_FULL: "the disk is full, or the file has reached its maximum size",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened",
    sqlite3.SQLITE_IOERR: "reading or writing the database file failed",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database, or is damaged",
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

_FORKED = (
    "the database file was open when this process was forked, and SQLite cannot use it on both sides of a fork; open "
    "the store in each process after the fork (in a worker's start-up hook, or with multiprocessing's 'spawn')"
)

_OPENING = threading.Lock()
"""Held while any store opens a file, and while the process forks. Two threads must not create the same file at once,
and closing any descriptor of a file drops this process's locks on it."""

_files: "WeakSet[DatabaseFile]" = WeakSet()
"""The files that this process has opened."""

_inherited: set[tuple[int, int] | None] = set()
"""Device and inode of the files that were open when this process, or a parent of it, was forked."""


def _after_fork() -> None:
    """Keep the child from using, or closing, a file that is open.

    SQLite believes that the inherited connections hold locks, but only the parent has them. A new connection would rely
    on them, and the last one to close would delete the log while others use it. Closing may also wait for ever for a
    thread that the child does not have. So the inherited connections are never closed, not even when the child exits.
    """
    connections = [connection for file in _files for connection in file.connections]
    if connections:
        import ctypes  # noqa: PLC0415 - only here

        _inherited.update(file.opened for file in _files if file.connections)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connections))
    _files.clear()
    _OPENING.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_OPENING.acquire, after_in_parent=_OPENING.release, after_in_child=_after_fork)


def unavailable(error: sqlite3.Error) -> StoreUnavailableError:
    """Return the error to raise for an error of SQLite, without SQLite's text, which may quote data."""
    code = _code(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    problem = f"{_PROBLEMS.get(code, 'SQLite failed')} ({name})"
    if code in _DAMAGED:
        return StoreUnavailableError(problem=problem, advice="Check the disk, and restore the file from a backup.")
    return StoreUnavailableError(problem=problem)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def is_transient(error: sqlite3.Error) -> bool:
    """Return whether the connection is still usable: the database was only locked, or the disk full."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}


class DatabaseFile:
    """One database file, and how to connect to it. The store calls the methods in its threads."""

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float) -> None:
        if str(path) in {"", ":memory:"}:
            raise ConfigurationError("a SQLite store needs a file; for a store in memory use MemoryStore or 'memory:'")
        self._path = Path(path).absolute()
        self._busy_timeout = busy_timeout
        real = os.path.realpath(self._path)  # as SQLite does
        self._all = [Path(real + suffix) for suffix in ("", "-wal", "-shm")]
        self._log = self._all[1]
        self._process: int | None = None
        self.opened: tuple[int, int] | None = None
        """Device and inode of the file that was opened first. They identify it even when it is renamed."""
        self.connections: set[sqlite3.Connection] = set()
        """The open ones."""

    def __str__(self) -> str:
        return str(self._path)

    @property
    def directory(self) -> Path:
        """Where the file and its log are."""
        return self._log.parent

    def log_bytes(self) -> int:
        """Return the size of the write-ahead log in bytes; 0 without a log."""
        return _size(self._log)

    def log_identity(self) -> tuple[int, int] | None:
        """Return device and inode of the write-ahead log. They must not change while a connection is open."""
        return _identity(self._log)

    def is_in_place(self) -> bool:
        """Return whether the path still leads to the file that was opened first."""
        return _identity(self._path) == self.opened

    def is_inherited(self) -> bool:
        """Return whether another process used this object first, so that its threads and connections are not ours."""
        return self._process not in {None, os.getpid()}

    def claim(self) -> None:
        """Bind this object to the process that uses it first; raise `ConfigurationError` in every other one."""
        process = os.getpid()
        self._process = self._process or process
        if self._process != process:
            raise ConfigurationError(_FORKED)

    def connect(self) -> sqlite3.Connection:
        """Open the database for writing in this thread. The first call creates the file and its tables if missing.

        A store has one of these connections at a time. It alone empties the log: some versions of SQLite can lose a
        commit made meanwhile.

        Raises:
            ConfigurationError: the path is not usable, or the file belongs to another program or version.
            StoreUnavailableError: the file cannot be opened now.
        """
        return self._connect("rw", self._set_up)

    def connect_to_read(self) -> sqlite3.Connection:
        """Open the database for reading in this thread, after `connect` has opened it; it raises the same errors."""
        # It must not empty the log. A connection with query_only does when it closes last.
        return self._connect("ro", lambda _: None)

    def disconnect(self, connection: sqlite3.Connection) -> None:
        """Close a connection."""
        connection.close()
        self.connections.discard(connection)

    def _connect(self, mode: str, set_up: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        with _OPENING:
            try:
                self._prepare()
                uri, timeout = f"{self._path.as_uri()}?mode={mode}", self._busy_timeout
                connection = sqlite3.connect(
                    uri, uri=True, timeout=timeout, isolation_level=None, cached_statements=256
                )
                try:
                    set_up(connection)
                except BaseException:
                    connection.close()
                    raise
            except OSError as error:
                problem = f"the database file cannot be created or opened ({error.strerror})"
                raise StoreUnavailableError(problem=problem) from error
            except sqlite3.Error as error:
                raise unavailable(error) from error
            self.opened = self.opened or _identity(self._path)
            self.connections.add(connection)
            _files.add(self)
            return connection

    def _prepare(self) -> None:
        """Check that the file can be used; create it, accessible only to its owner, if it is missing."""
        identity = _identity(self._path)
        if identity is not None and identity in _inherited:
            raise ConfigurationError(_FORKED)
        if self.opened is not None and identity != self.opened:
            # Another file lacks our registrations, so every delivery would be refused as unknown.
            what, advice = "deleted", "Put this file back, or restart to create a new one."
            if identity is not None:
                what, advice = "replaced by another", "Restart to use the new file."
            raise StoreUnavailableError(problem=f"the database file was {what}", advice=advice)
        # In this order: a process that creates both creates the log last. SQLite would delete the log, and all in it.
        if self.log_bytes() and not _size(self._path):
            raise StoreUnavailableError(
                problem="the database file is missing or empty, but its write-ahead log exists",
                advice="Put the file back beside its log, or delete the log to start with an empty store.",
            )
        if not self._path.parent.is_dir():
            raise ConfigurationError(f"the directory {self._path.parent} does not exist; create it")
        if self._path.exists() and not self._path.is_file():  # a directory, pipe or device
            raise ConfigurationError(f"{self._path} is not a regular file; choose another path")
        self._check_access()
        create_private(self._path)  # SQLite gives -wal and -shm its owner and mode
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if self.opened is None and mode & 0o007 and hasattr(os, "geteuid"):  # Windows has neither
            _log.warning("%.200a contains secrets, but with mode %o every user can open it", str(self), mode)

    def _check_access(self) -> None:
        """Check permissions: without them SQLite would continue read-only, and leave a log behind that stays so."""
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise StoreUnavailableError(
                problem=f"this process may not create files in the directory {self.directory}{_owner(self.directory)}",
                advice="Let it write there, or choose another one: SQLite also creates files beside the database file.",
            )
        for file in self._all:
            if file.exists() and not os.access(file, os.R_OK | os.W_OK):
                problem = f"this process has no permission to read and write the database file {file}{_owner(file)}"
                raise StoreUnavailableError(problem=problem)

    def _set_up(self, connection: sqlite3.Connection) -> None:
        self._use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, not only a crash
        connection.execute("PRAGMA secure_delete = ON")  # overwrite deleted secrets and bodies with zeros
        connection.execute(f"PRAGMA journal_size_limit = {LONG_LOG}")
        prepare(connection)

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        give_up_at = time.monotonic() + self._busy_timeout
        mode = ""
        while not mode:
            try:
                is_ready(connection)  # refuses a file of another program before anything changes in it
                if not _size(self._path):  # later it has no effect, and waits for others that write
                    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                # While another process switches the mode, SQLite returns busy at once and ignores the timeout.
                if not is_transient(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.005)
        if mode != "wal":
            problem = "this file system does not support SQLite's write-ahead log"
            raise StoreUnavailableError(problem=problem, advice="Put the file on a local disk.")


def create_private(path: Path) -> None:
    """Create a file that only its owner can use, unless it exists.

    It does not open an existing one: closing any descriptor of a file drops this process's locks on it.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        path.chmod(0o600)  # the umask may have removed even these bits


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _size(path: Path) -> int:
    found = _stat(path)
    return found.st_size if found else 0


def _identity(path: Path) -> tuple[int, int] | None:
    found = _stat(path)
    return (found.st_dev, found.st_ino) if found else None


def _owner(path: Path) -> str:
    """Return who owns a file or directory, and who this process is, as the end of a sentence."""
    found = _stat(path)
    if found is None or not hasattr(os, "geteuid"):  # Windows has no such numbers
        return ""
    mode = stat.S_IMODE(found.st_mode)
    return f", owned by uid {found.st_uid} with mode {mode:o}; this process has uid {os.geteuid()}"
