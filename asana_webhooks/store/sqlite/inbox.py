"""The deliveries of the SQLite store: each function is what one method does inside a transaction."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from asana_webhooks.errors import StoreFullError
from asana_webhooks.store.base import (
    DeadLetter,
    Lease,
    NewDelivery,
    PutResult,
    RegistrationState,
    StoreHealth,
)
from asana_webhooks.store.rules import MAX_SKEW, NO_ROOM, DeliveryState, landing, standing
from asana_webhooks.store.sqlite.room import COUNT_UNFINISHED, Room
from asana_webhooks.store.sqlite.schema import kept_signature

__all__ = [
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
KNOWN = "SELECT 1 FROM deliveries WHERE registration = ? AND duplicate_key = ?"
ADD = """
    INSERT INTO deliveries (registration, duplicate_key, state, received_at, candidate) VALUES (?, ?, 'waiting', ?, ?)
"""
ADD_TO_QUARANTINE = ADD.replace("waiting", "quarantined")
ADD_BODY = "INSERT INTO bodies (delivery, body) VALUES (?, ?)"

# claim
WAKE = "UPDATE deliveries SET state = 'waiting', since = NULL, due_at = NULL WHERE due_at <= ? OR since > ?"
ANY_WAITING = "SELECT 1 FROM deliveries WHERE state = 'waiting' LIMIT 1"
LEASABLE = """
    SELECT deliveries.id AS id, fence + 1 AS fence, attempts + 1 AS attempt, registrations.id AS registration,
        webhook_gid, resource, received_at, body
    FROM deliveries
    JOIN registrations ON registrations.number = deliveries.registration
    JOIN bodies ON bodies.delivery = deliveries.id
"""
OLDEST = f"{LEASABLE} WHERE deliveries.state = 'waiting' ORDER BY deliveries.id LIMIT ?"
# Steps from one registration that has something unfinished to the next, so that a long queue of one costs nothing.
OLDEST_IN_ORDER = f"""
    WITH RECURSIVE queues (registration) AS (
        SELECT min(registration) FROM deliveries WHERE state = 'waiting' OR state IN ('delayed', 'leased')
        UNION ALL
        SELECT (
            SELECT min(registration) FROM deliveries
            WHERE (state = 'waiting' OR state IN ('delayed', 'leased')) AND registration > queues.registration
        )
        FROM queues WHERE queues.registration IS NOT NULL
    ),
    heads (registration, id) AS (
        SELECT registration, (
            SELECT min(id) FROM deliveries
            WHERE (state = 'waiting' OR state IN ('delayed', 'leased')) AND registration = queues.registration
        )
        FROM queues WHERE registration IS NOT NULL
    )
    {LEASABLE} WHERE deliveries.state = 'waiting' AND deliveries.id IN (
        SELECT id FROM heads WHERE NOT (? AND EXISTS (
            SELECT 1 FROM deliveries AS earlier
            WHERE earlier.state IN ('quarantined', 'dead') AND earlier.state = 'dead'
                AND earlier.registration = heads.registration AND earlier.id < heads.id
        ))
    )
    ORDER BY deliveries.id LIMIT ?
"""  # noqa: S608 - made of constants, as the ones below
LEASE = """
    UPDATE deliveries SET state = 'leased', since = ?, due_at = ?, fence = fence + 1, attempts = attempts + 1
    WHERE id = ?
"""

# Leases
HELD = "id = ? AND fence = ? AND state = 'leased' AND due_at > ? AND since <= ?"
EXTEND = f"UPDATE deliveries SET since = ?, due_at = ? WHERE {HELD}"  # noqa: S608
DONE = f"""
    UPDATE deliveries SET state = 'done', since = NULL, due_at = NULL, error = NULL, candidate = NULL WHERE {HELD}
"""  # noqa: S608
DROP_BODY = "DELETE FROM bodies WHERE delivery = ?"
FAIL = f"UPDATE deliveries SET state = ?, since = ?, due_at = ?, error = ? WHERE {HELD}"  # noqa: S608
RELEASE = f"""
    UPDATE deliveries SET state = 'waiting', since = NULL, due_at = NULL, attempts = attempts - 1 WHERE {HELD}
"""  # noqa: S608

# health
APART = """
    SELECT state, count(*) FROM deliveries WHERE state IN ('quarantined', 'dead') GROUP BY state
"""
COUNT_LEASED = "SELECT count(*) FROM deliveries WHERE due_at > ? AND state = 'leased' AND since <= ?"
FIRST_WAITING = "SELECT received_at FROM deliveries WHERE state = 'waiting' ORDER BY id LIMIT 1"
FIRST_OTHER = "SELECT min(received_at) FROM deliveries WHERE due_at IS NOT NULL"
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


def put(
    connection: sqlite3.Connection, deliveries: Iterable[NewDelivery], *, now: float, room: Room
) -> list[PutResult | StoreFullError]:
    """See `Store.put`; of several together each registration is looked up once."""
    landings: dict[tuple[str, str | None], tuple[int, DeliveryState] | None] = {}
    outcomes: list[PutResult | StoreFullError] = []
    for new in deliveries:
        target = new.registration, new.candidate
        if target not in landings:
            landings[target] = _landing(connection, *target, now=now)
        found = landings[target]
        try:
            outcomes.append("refused" if found is None else _add(connection, new, *found, now=now, room=room))
        except StoreFullError as error:
            outcomes.append(error)
    return outcomes


def _landing(
    connection: sqlite3.Connection, registration: str, candidate: str | None, *, now: float
) -> tuple[int, DeliveryState] | None:
    """Return the number of a registration, and where its new deliveries go; nothing if they are refused."""
    found = connection.execute(REGISTRATION, (registration,)).fetchone()
    if found is None:
        return None
    number, state, deadline, confirmed = found
    place = landing(
        standing(RegistrationState(state), deadline=deadline, now=now),
        confirmed=confirmed,
        candidates={name for (name,) in connection.execute(CANDIDATES, (number,))} if state == "pending" else (),
        candidate=candidate,
    )
    return None if place is None else (number, place)


def _add(
    connection: sqlite3.Connection, new: NewDelivery, number: int, place: DeliveryState, *, now: float, room: Room
) -> PutResult:
    # The signature is in no local variable: error trackers show those of a frame that raises.
    # Asked first, though ON CONFLICT would take 2 us less: that uses up a number, and so writes for each duplicate.
    if connection.execute(KNOWN, (number, kept_signature(new.signature))).fetchone():
        return "duplicate"
    room.check(connection, place, number, len(new.body), now=now)
    statement = ADD if place is DeliveryState.WAITING else ADD_TO_QUARANTINE
    added = connection.execute(statement, (number, kept_signature(new.signature), now, new.candidate))
    connection.execute(ADD_BODY, (added.lastrowid, new.body))
    room.added(place)
    return "stored"


def claim(
    connection: sqlite3.Connection, limit: int, *, now: float, until: float, ordered: bool, halt: bool
) -> list[Lease]:
    """See `Store.claim`."""
    connection.execute(WAKE, (now, now + MAX_SKEW))
    if not connection.execute(ANY_WAITING).fetchone():
        return []  # what is delayed or leased need not be stepped through
    chosen = connection.execute(OLDEST_IN_ORDER, (halt, limit)) if ordered else connection.execute(OLDEST, (limit,))
    leases = [Lease(**values, expires_at=until) for values in _named(chosen)]
    connection.executemany(LEASE, [(now, until, lease.id) for lease in leases])
    return leases


def extend(connection: sqlite3.Connection, lease: Lease, *, now: float, until: float) -> bool:
    """See `Store.extend`."""
    return _changed(connection, EXTEND, now, until, lease=lease, now=now)


def done(connection: sqlite3.Connection, leases: Sequence[Lease], *, now: float) -> list[bool]:
    """See `Store.done`; for several together."""
    finished = [_changed(connection, DONE, lease=lease, now=now) for lease in leases]
    connection.executemany(DROP_BODY, [(lease.id,) for lease, is_done in zip(leases, finished, strict=True) if is_done])
    return finished


def fail(connection: sqlite3.Connection, lease: Lease, *, error: str, now: float, retry_at: float | None) -> bool:
    """See `Store.fail`."""
    state = (DeliveryState.DEAD if retry_at is None else DeliveryState.DELAYED).value
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
    (unfinished,) = connection.execute(COUNT_UNFINISHED).fetchone()
    (leased,) = connection.execute(COUNT_LEASED, (now, now + MAX_SKEW)).fetchone()
    apart = dict(connection.execute(APART).fetchall())
    is_full = room.is_full(unfinished)
    firsts = [*connection.execute(FIRST_WAITING), *connection.execute(FIRST_OTHER)]
    first = min((received_at for (received_at,) in firsts if received_at is not None), default=None)
    return StoreHealth(
        waiting=unfinished - leased,
        leased=leased,
        quarantined=apart.get(DeliveryState.QUARANTINED, 0),
        dead=apart.get(DeliveryState.DEAD, 0),
        oldest_age=None if first is None else max(0.0, now - first),
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
