"""The deliveries of the SQLite store: each function is what one method does inside a transaction."""

import sqlite3
from collections.abc import Iterator
from typing import Any

from attrs import define, field

from asana_webhooks.errors import StoreFullError
from asana_webhooks.store.base import (
    DeadLetter,
    Lease,
    NewDelivery,
    PutResult,
    RegistrationState,
    StoreHealth,
)
from asana_webhooks.store.rules import MAX_SKEW, NO_ROOM, UNFINISHED, DeliveryState, landing, standing

__all__ = [
    "Room",
    "claim",
    "dead_letters",
    "done",
    "extend",
    "fail",
    "health",
    "integrity",
    "probe",
    "put",
    "release",
    "requeue",
]

# put
REGISTRATION = "SELECT number, state, deadline, candidate FROM registrations WHERE id = ?"
CANDIDATES = "SELECT id FROM candidates WHERE registration = ?"
KNOWN = "SELECT 1 FROM deliveries WHERE registration = ? AND signature = ?"
QUARANTINED = """
    SELECT count(*), coalesce(sum(length(bodies.body)), 0)
    FROM deliveries JOIN bodies ON bodies.delivery = deliveries.id
    WHERE deliveries.state = 'quarantined' AND deliveries.registration = ?
"""
COUNT_UNFINISHED = "SELECT count(*) FROM deliveries WHERE state IN ('waiting', 'delayed', 'leased')"
ADD = "INSERT INTO deliveries (registration, signature, state, received_at, candidate) VALUES (?, ?, ?, ?, ?)"
ADD_BODY = "INSERT INTO bodies (delivery, body) VALUES (?, ?)"

# claim
WAKE = "UPDATE deliveries SET state = 'waiting', since = NULL, due_at = NULL WHERE due_at <= ? OR since > ?"
OLDEST = "SELECT id FROM deliveries WHERE state = 'waiting' ORDER BY id LIMIT ?"
# Steps from one registration that has something waiting to the next, so that a long queue of one costs nothing; its
# oldest may be leased if nothing before it is delayed or leased, or in a third state.
OLDEST_IN_ORDER = """
    WITH RECURSIVE queues (registration) AS (
        SELECT min(registration) FROM deliveries WHERE state = 'waiting'
        UNION ALL
        SELECT (SELECT min(registration) FROM deliveries WHERE state = 'waiting' AND registration > queues.registration)
        FROM queues WHERE queues.registration IS NOT NULL
    ),
    heads (registration, id) AS (
        SELECT registration,
            (SELECT min(id) FROM deliveries WHERE state = 'waiting' AND registration = queues.registration)
        FROM queues WHERE registration IS NOT NULL
    )
    SELECT id FROM heads WHERE NOT EXISTS (
        SELECT 1 FROM deliveries AS earlier
        WHERE earlier.state IN ('delayed', 'leased', ?) AND earlier.registration = heads.registration
            AND earlier.id < heads.id
    )
    ORDER BY id LIMIT ?
"""
LEASE = """
    UPDATE deliveries SET state = 'leased', since = ?, due_at = ?, fence = fence + 1, attempts = attempts + 1
    WHERE id = ?
"""
LEASED = """
    SELECT deliveries.id AS id, fence, attempts AS attempt, registrations.id AS registration, webhook_gid, resource,
        received_at, due_at AS expires_at, body
    FROM deliveries
    JOIN registrations ON registrations.number = deliveries.registration
    JOIN bodies ON bodies.delivery = deliveries.id
    WHERE deliveries.id = ?
"""

# Leases
HELD = "id = ? AND fence = ? AND state = 'leased' AND due_at > ? AND since <= ?"
EXTEND = f"UPDATE deliveries SET since = ?, due_at = ? WHERE {HELD}"  # noqa: S608 - made of constants, as the next ones
DONE = f"""
    UPDATE deliveries SET state = 'done', since = NULL, due_at = NULL, error = NULL, candidate = NULL WHERE {HELD}
"""  # noqa: S608
DROP_BODY = "DELETE FROM bodies WHERE delivery = ?"
FAIL = f"UPDATE deliveries SET state = ?, since = ?, due_at = ?, error = ? WHERE {HELD}"  # noqa: S608
RELEASE = f"""
    UPDATE deliveries SET state = 'waiting', since = NULL, due_at = NULL, attempts = attempts - 1 WHERE {HELD}
"""  # noqa: S608

# health
DEPTHS = """
    SELECT state, count(*) FROM deliveries
    WHERE state IN ('quarantined', 'waiting', 'delayed', 'leased', 'dead') GROUP BY state
"""
EXPIRED = "SELECT count(*) FROM deliveries WHERE state = 'leased' AND (due_at <= ? OR since > ?)"
FIRST = "SELECT received_at FROM deliveries WHERE state = ? ORDER BY id LIMIT 1"
PROBE = "INSERT INTO probe (one, at) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET at = excluded.at"

# Maintenance
DEAD_LETTERS = """
    SELECT deliveries.id AS id, registrations.id AS registration, webhook_gid, resource, received_at, attempts, error,
        body
    FROM deliveries
    JOIN registrations ON registrations.number = deliveries.registration
    JOIN bodies ON bodies.delivery = deliveries.id
    WHERE deliveries.state = 'dead' AND deliveries.id > ? ORDER BY deliveries.id LIMIT ?
"""
REQUEUE = "UPDATE deliveries SET state = 'waiting', attempts = 0 WHERE id = ? AND state = 'dead'"


@define(eq=False, kw_only=True)
class Room:
    """How much the inbox takes; see `SQLiteStore` for the limits."""

    max_deliveries: int | None
    max_quarantined: int
    max_quarantined_bytes: int
    _unfinished: int | None = field(default=None, init=False)
    """Counted once in a transaction, if at all."""

    def begin(self) -> None:
        """Forget what was counted: another process may have written since."""
        self._unfinished = None

    def is_full(self, unfinished: int) -> bool:
        """Tell whether no delivery more may wait beside so many."""
        return self.max_deliveries is not None and unfinished >= self.max_deliveries

    def check_inbox(self, connection: sqlite3.Connection) -> None:
        """Raise `StoreFullError` if no delivery more may wait, else reckon with one more."""
        if self.max_deliveries is None:
            return
        if self._unfinished is None:
            (self._unfinished,) = connection.execute(COUNT_UNFINISHED).fetchone()
        if self.is_full(self._unfinished):
            raise StoreFullError(problem="too many deliveries are unfinished")
        self._unfinished += 1

    def check_quarantine(self, connection: sqlite3.Connection, number: int, size: int) -> None:
        """Raise `StoreFullError` if this registration may have nothing more in quarantine."""
        count, total = connection.execute(QUARANTINED, (number,)).fetchone()
        if count >= self.max_quarantined or total + size > self.max_quarantined_bytes:
            raise StoreFullError(problem="a pending registration has no room for more in quarantine")


def put(connection: sqlite3.Connection, new: NewDelivery, *, now: float, room: Room) -> PutResult:
    """See `Store.put`."""
    found = connection.execute(REGISTRATION, (new.registration,)).fetchone()
    if found is None:
        return "refused"
    number, state, deadline, confirmed = found
    place = landing(
        standing(RegistrationState(state), deadline=deadline, now=now),
        confirmed=confirmed,
        candidates={name for (name,) in connection.execute(CANDIDATES, (number,))} if state == "pending" else (),
        candidate=new.candidate,
    )
    if place is None:
        return "refused"
    if connection.execute(KNOWN, (number, new.signature)).fetchone():
        return "duplicate"
    if place is DeliveryState.QUARANTINED:
        room.check_quarantine(connection, number, len(new.body))
    else:
        room.check_inbox(connection)
    added = connection.execute(ADD, (number, new.signature, place, now, new.candidate))
    connection.execute(ADD_BODY, (added.lastrowid, new.body))
    return "stored"


def claim(
    connection: sqlite3.Connection, limit: int, *, now: float, until: float, ordered: bool, halt: bool
) -> list[Lease]:
    """See `Store.claim`."""
    connection.execute(WAKE, (now, now + MAX_SKEW))
    if ordered:
        third = DeliveryState.DEAD if halt else DeliveryState.LEASED
        chosen = connection.execute(OLDEST_IN_ORDER, (third, limit)).fetchall()
    else:
        chosen = connection.execute(OLDEST, (limit,)).fetchall()
    connection.executemany(LEASE, [(now, until, number) for (number,) in chosen])
    return [Lease(**values) for one in chosen for values in _named(connection.execute(LEASED, one))]


def extend(connection: sqlite3.Connection, lease: Lease, *, now: float, until: float) -> bool:
    """See `Store.extend`."""
    return _changed(connection, EXTEND, now, until, lease=lease, now=now)


def done(connection: sqlite3.Connection, lease: Lease, *, now: float) -> bool:
    """See `Store.done`."""
    finished = _changed(connection, DONE, lease=lease, now=now)
    if finished:
        connection.execute(DROP_BODY, (lease.id,))
    return finished


def fail(connection: sqlite3.Connection, lease: Lease, *, error: str, now: float, retry_at: float | None) -> bool:
    """See `Store.fail`."""
    state = DeliveryState.DEAD if retry_at is None else DeliveryState.DELAYED
    since = None if retry_at is None else now
    return _changed(connection, FAIL, state, since, retry_at, error, lease=lease, now=now)


def release(connection: sqlite3.Connection, lease: Lease, *, now: float) -> bool:
    """See `Store.release`."""
    return _changed(connection, RELEASE, lease=lease, now=now)


def _changed(connection: sqlite3.Connection, statement: str, *values: Any, lease: Lease, now: float) -> bool:
    """Run a statement that ends in `HELD`; tell whether the lease held the delivery."""
    return connection.execute(statement, (*values, lease.id, lease.fence, now, now + MAX_SKEW)).rowcount == 1


def health(
    connection: sqlite3.Connection, *, now: float, room: Room, written: bool, heartbeats: dict[str, float | None]
) -> StoreHealth:
    """See `Store.health`; *written* tells whether a write just worked."""
    counts = dict(connection.execute(DEPTHS).fetchall())
    (expired,) = connection.execute(EXPIRED, (now, now + MAX_SKEW)).fetchone()
    leased = counts.get(DeliveryState.LEASED, 0) - expired
    unfinished = sum(counts.get(state, 0) for state in UNFINISHED)
    is_full = room.is_full(unfinished)
    first = [received_at for state in UNFINISHED for (received_at,) in connection.execute(FIRST, (state,))]
    return StoreHealth(
        waiting=unfinished - leased,
        leased=leased,
        quarantined=counts.get(DeliveryState.QUARANTINED, 0),
        dead=counts.get(DeliveryState.DEAD, 0),
        oldest_age=max(0.0, now - min(first)) if first else None,
        writable=written and not is_full,
        heartbeats=heartbeats,
        problems=(NO_ROOM,) if is_full else (),
    )


def probe(connection: sqlite3.Connection, *, now: float) -> None:
    """Write something, to see whether it works."""
    connection.execute(PROBE, (now,))


def integrity(connection: sqlite3.Connection) -> list[str]:
    """See `SQLiteStore.integrity_check`."""
    found = [problem for (problem,) in connection.execute("PRAGMA integrity_check")]
    orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
    broken = [f"a row of {table} belongs to none of {parent}" for table, _, parent, _ in orphans[:100]]
    return [*(problem for problem in found if problem != "ok"), *broken][:100]


def dead_letters(connection: sqlite3.Connection, *, limit: int, after: int) -> list[DeadLetter]:
    """See `Store.dead_letters`."""
    return [DeadLetter(**values) for values in _named(connection.execute(DEAD_LETTERS, (after, limit)))]


def requeue(connection: sqlite3.Connection, id: int) -> bool:
    """See `Store.requeue`."""
    return connection.execute(REQUEUE, (id,)).rowcount == 1


def _named(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor)
