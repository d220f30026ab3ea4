"""What a SQLite store forgets, in steps short enough for those who want to write meanwhile."""

import sqlite3
from collections.abc import Iterable, Iterator

from asana_webhooks.store.rules import DeliveryState

__all__ = ["purge"]

ROWS_AT_ONCE = 500
"""So many rows go in one step, which is one transaction."""

BYTES_AT_ONCE = 4 * 1024**2
"""With the body that makes it so many bytes a step ends: what is deleted is overwritten, and that goes into the log."""

PURGEABLE = """
    SELECT deliveries.id, coalesce(length(bodies.body), 0)
    FROM deliveries LEFT JOIN bodies ON bodies.delivery = deliveries.id
    WHERE deliveries.state IN ('done', 'dead') AND deliveries.state = ? AND deliveries.received_at < ? LIMIT ?
"""
PURGE = "DELETE FROM deliveries WHERE id = ?"
PURGE_REGISTRATIONS = """
    DELETE FROM registrations WHERE number IN (
        SELECT number FROM registrations WHERE state = 'closed' AND deadline < ?
            AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.registration = registrations.number)
        LIMIT ?
    )
"""


def purge(connection: sqlite3.Connection, *, before: float, dead: bool) -> tuple[int, int]:
    """Take one step of `Store.purge`; return how many deliveries and registrations went. None: all is done."""
    for state in (DeliveryState.DONE, DeliveryState.DEAD) if dead else (DeliveryState.DONE,):
        purgeable = connection.execute(PURGEABLE, (state.value, before, ROWS_AT_ONCE)).fetchall()
        chosen = list(_for_one_step(purgeable))
        if chosen:
            connection.executemany(PURGE, chosen)
            return len(chosen), 0
    return 0, connection.execute(PURGE_REGISTRATIONS, (before, ROWS_AT_ONCE)).rowcount


def _for_one_step(purgeable: Iterable[tuple[int, int]]) -> Iterator[tuple[int]]:
    """Yield the ids of those that go first, given ids and bytes."""
    total = 0
    for id, size in purgeable:
        yield (id,)
        total += size
        if total >= BYTES_AT_ONCE:
            return
