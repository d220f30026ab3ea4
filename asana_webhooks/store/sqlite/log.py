"""How long the write-ahead log may get, and what to do about it. Decisions only.

SQLite empties its log when it has copied all of it into the database, which needs a moment without readers of old
states. A reader that stays, such as a backup or an SQL shell with an open transaction, lets the log grow for ever.
"""

from typing import Literal

from attrs import define, field

from asana_webhooks.errors import StoreFullError

__all__ = ["LONG", "TRY_AGAIN", "LogWatch"]

LONG = 64 * 1024**2
"""Bytes the log may keep when it is emptied (``journal_size_limit``), and from which on it is emptied by hand."""

TRY_AGAIN = 5.0
"""Seconds between two attempts to empty a log that somebody reads."""

_STUCK = "the write-ahead log cannot be emptied and grows: something keeps reading the database"
_FULL = "the write-ahead log is as long as max_log_bytes allows, and nothing new is taken: something keeps reading"


@define(eq=False)
class LogWatch:
    """What is known about the log of one store.

    Args:
        max_bytes: from this length on, nothing new is taken while the log cannot be emptied.
        long: from this length on, it is emptied by hand.
    """

    max_bytes: int
    long: int
    _stuck: bool = field(default=False, init=False)
    """Whether it was long and could not be emptied, and has not become short since."""
    _length: int = field(default=0, init=False)
    _tried_at: float = field(default=0.0, init=False)

    def see(self, length: int) -> Literal["short again"] | None:
        """Note how long the log is now."""
        self._length = length
        if not self._stuck or length > self.long:
            return None
        self._stuck = False
        return "short again"

    def should_empty(self, *, now: float) -> bool:
        """Tell whether to try to empty it."""
        return self._length > self.long and (not self._stuck or now >= self._tried_at + TRY_AGAIN)

    def failed(self, *, now: float) -> Literal["stuck"] | None:
        """Note that somebody kept it from being emptied."""
        self._tried_at = now
        if self._stuck:
            return None
        self._stuck = True
        return "stuck"

    @property
    def is_full(self) -> bool:
        """Whether it is too long to take anything new."""
        return self._stuck and self._length > self.max_bytes

    def check_room(self) -> None:
        """Raise `StoreFullError` if the log is full."""
        if self.is_full:
            raise StoreFullError(
                problem=f"the write-ahead log has {self._length} bytes and cannot be emptied, because another "
                "connection keeps reading the database",
                advice="End what reads it: a backup, an SQL shell with an open transaction, or a process that hangs.",
            )

    @property
    def problems(self) -> tuple[str, ...]:
        """What an operator should know."""
        if self.is_full:
            return (_FULL,)
        return (_STUCK,) if self._stuck else ()
