"""How much the inbox of the SQLite store takes."""

import math
import sqlite3

from attrs import define, field

from asana_webhooks.errors import StoreFullError
from asana_webhooks.store.rules import DeliveryState

__all__ = ["COUNT_UNFINISHED", "QUARANTINED", "Room"]

GOOD_FOR = 1.0
"""Seconds. Counting steps through all that is unfinished: done for each transaction, it left a tenth of the puts beside
a million that wait."""

# Of one state in two ways: SQLite takes a partial index if the condition of the index stands in the statement.
QUARANTINED = """
    SELECT count(*), coalesce(sum(length(bodies.body)), 0)
    FROM deliveries JOIN bodies ON bodies.delivery = deliveries.id
    WHERE deliveries.state IN ('quarantined', 'dead') AND deliveries.state = 'quarantined'
        AND deliveries.registration = ?
"""
COUNT_UNFINISHED = """
    SELECT (SELECT count(*) FROM deliveries WHERE state = 'waiting')
        + (SELECT count(*) FROM deliveries WHERE due_at IS NOT NULL)
"""


@define(eq=False, kw_only=True)
class Room:
    """How much more the inbox takes; see `SQLiteStore` for the limits."""

    max_deliveries: int | None
    max_quarantined: int
    max_quarantined_bytes: int
    _left: int = field(default=0, init=False)
    """How many more may wait, unless something was finished since that was counted."""
    _counted_at: float = field(default=-math.inf, init=False)
    _is_fresh: bool = field(default=False, init=False)
    """Whether it was counted in this transaction."""

    def begin(self) -> None:
        """Begin a transaction."""
        self._is_fresh = False

    def is_full(self, unfinished: int) -> bool:
        """Tell whether no delivery more may wait beside so many."""
        return self.max_deliveries is not None and unfinished >= self.max_deliveries

    def check(
        self, connection: sqlite3.Connection, place: DeliveryState, number: int, size: int, *, now: float
    ) -> None:
        """Raise `StoreFullError` if a delivery has no room where it is to land, in the inbox or in quarantine."""
        if place is DeliveryState.QUARANTINED:
            count, total = connection.execute(QUARANTINED, (number,)).fetchone()
            if count >= self.max_quarantined or total + size > self.max_quarantined_bytes:
                raise StoreFullError(problem="a pending registration has no room for more in quarantine")
        elif self.max_deliveries is not None:
            is_old = abs(now - self._counted_at) >= GOOD_FOR  # others may have added some
            if not self._is_fresh and (is_old or self._left <= 0):
                (unfinished,) = connection.execute(COUNT_UNFINISHED).fetchone()
                self._left = self.max_deliveries - unfinished
                self._counted_at, self._is_fresh = now, True
            if self._left <= 0:
                raise StoreFullError(problem="too many deliveries are unfinished")

    def added(self, place: DeliveryState) -> None:
        """Reckon with one more."""
        if place is DeliveryState.WAITING:
            self._left -= 1
