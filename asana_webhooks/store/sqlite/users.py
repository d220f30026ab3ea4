"""Who else uses the database file, and whether that is dangerous with the SQLite at hand."""

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

__all__ = ["Users", "is_affected"]

_TRIES = 10


def is_affected(version: tuple[int, int, int]) -> bool:
    """Tell whether a version of SQLite can lose commits when one connection empties the log while another commits.

    Fixed in 3.51.3, 3.50.7 and 3.44.6, and what follows each.
    Source: https://www.sqlite.org/wal.html
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)
    return not fixed


class Users:
    """The stores that have one database file open, in this process or another of this machine.

    Each of them holds a shared lock on a file beside the database, which is private to its owner, and goes with the
    last of them. The lock keeps nobody from anything, never waits, and ends with the process. Where it does not work
    (a file system without locks), everybody looks alone.

    Its methods are called in one thread. A process that is forked meanwhile counts as another user until it ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.was_first = True
        """Whether nobody else was there when this one joined, as far as the system can tell."""
        self._closing: weakref.finalize[[int], Users] | None = None
        self._file = -1
        """The descriptor that holds the lock, while `_closing` is alive."""

    def join(self) -> None:
        """Count as a user from now on."""
        for _ in range(_TRIES):
            if self._closing is not None:
                return
            with contextlib.suppress(OSError):
                self._open()

    def leave(self) -> None:
        """Count no more; the last one deletes the file."""
        if self._closing is None:
            return
        if self._lock(fcntl.LOCK_EX) and self._is_in_place():
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._close()

    def are_several(self) -> bool:
        """Tell whether somebody else uses the database, too."""
        if self._closing is None:
            return False
        if not self._is_in_place():  # somebody deleted the file, and who came later uses another one
            self._close()
            self.join()
        alone = self._lock(fcntl.LOCK_EX)
        self._share()  # of two that look at the same moment at least one sees the other
        return not alone

    def _open(self) -> None:
        options = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, options, 0o600)
        self._closing = weakref.finalize(self, os.close, self._file)
        with contextlib.suppress(OSError):
            os.fchmod(self._file, 0o600)  # the umask may have taken even that
        self.was_first = self._lock(fcntl.LOCK_EX)  # of many that come at the same moment, one
        self._share()
        if not self._is_in_place():  # its last user has just deleted it
            self._close()

    def _share(self) -> None:
        for _ in range(_TRIES):  # others hold it alone for an instant, while they look
            if self._lock(fcntl.LOCK_SH):
                break

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # there are no locks here, so nobody is in the way
            return True
        return True

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except OSError:
            return False

    def _close(self) -> None:
        if self._closing is not None:
            self._closing()
            self._closing = None
