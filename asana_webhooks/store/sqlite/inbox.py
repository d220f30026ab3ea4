"""The deliveries of the SQLite store: each function does the work of one method inside a transaction."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from asana_webhooks.errors import StoreFullError
from asana_webhooks.store.base import (
    DeliveryState,
    Lease,
    NewDelivery,
    PutResult,
    RegistrationState,
    StoredDelivery,
    StoreHealth,
)
from asana_webhooks.store.rules import MAX_SKEW, QuarantineLimits, effective_state, initial_state
from asana_webhooks.store.sqlite.file import sqlite3

__all__ = [
    "claim",
    "dead_letters",
    "done",
    "extend",
    "fail",
    "health",
    "integrity",
    "probe",
    "purge",
    "put",
    "release",
    "requeue",
]

# put
REGISTRATION = "SELECT number, state, deadline, candidate FROM registrations WHERE id = ?"
CANDIDATES = "SELECT id FROM candidates WHERE registration = ?"
KNOWN = "SELECT 1 FROM deliveries WHERE registration = ? AND duplicate_key = ?"
ADD = "INSERT INTO deliveries (registration, duplicate_key, state, received_at, candidate) VALUES (?, ?, ?, ?, ?)"
ADD_BODY = "INSERT INTO bodies (delivery, body) VALUES (?, ?)"
# The state is tested twice: SQLite uses a partial index only if the statement contains the index's condition.
QUARANTINED = """
    SELECT count(*), coalesce(sum(length(bodies.body)), 0)
    FROM deliveries JOIN bodies ON bodies.delivery = deliveries.id
    WHERE deliveries.state IN ('quarantined', 'dead') AND deliveries.state = 'quarantined'
        AND deliveries.registration = ?
"""

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
# Steps from one registration with unfinished deliveries to the next, so that a long queue of one costs nothing.
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
COUNT_UNFINISHED = """
    SELECT (SELECT count(*) FROM deliveries WHERE state = 'waiting')
        + (SELECT count(*) FROM deliveries WHERE due_at IS NOT NULL)
"""
APART = """
    SELECT state, count(*) FROM deliveries WHERE state IN ('quarantined', 'dead') GROUP BY state
"""
COUNT_LEASED = "SELECT count(*) FROM deliveries WHERE due_at > ? AND state = 'leased' AND since <= ?"
FIRST_WAITING = "SELECT received_at FROM deliveries WHERE state = 'waiting' ORDER BY id LIMIT 1"
FIRST_OTHER = "SELECT min(received_at) FROM deliveries WHERE due_at IS NOT NULL"
HEARTBEATS = "SELECT webhook_gid, last_heartbeat_at FROM registrations WHERE state = 'confirmed'"
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

ROWS_AT_ONCE = 500
"""How many rows `purge` deletes in one transaction at most, so that other operations run in between."""

BYTES_AT_ONCE = 4 * 1024**2
"""Once its bodies reach this size in bytes, a transaction of `purge` ends: overwriting deleted data fills the log."""


def put(
    connection: sqlite3.Connection, deliveries: Iterable[NewDelivery], *, now: float, limits: QuarantineLimits
) -> list[PutResult | StoreFullError]:
    """See `Store.put`; each registration is looked up once for all its deliveries."""
    places: dict[tuple[str, str | None], tuple[int, DeliveryState] | None] = {}
    outcomes: list[PutResult | StoreFullError] = []
    for new in deliveries:
        key = new.registration, new.candidate
        if key not in places:
            places[key] = _place(connection, *key, now=now)
        place = places[key]
        try:
            outcomes.append("refused" if place is None else _add(connection, new, *place, now=now, limits=limits))
        except StoreFullError as error:
            outcomes.append(error)
    return outcomes


def _place(
    connection: sqlite3.Connection, registration: str, candidate: str | None, *, now: float
) -> tuple[int, DeliveryState] | None:
    """Return the number of a registration and the state of its new deliveries; ``None`` if they are refused."""
    found = connection.execute(REGISTRATION, (registration,)).fetchone()
    if found is None:
        return None
    number, state, deadline, confirmed = found
    initial = initial_state(
        effective_state(RegistrationState(state), deadline=deadline, now=now),
        confirmed=confirmed,
        candidates={name for (name,) in connection.execute(CANDIDATES, (number,))} if state == "pending" else (),
        candidate=candidate,
    )
    return None if initial is None else (number, initial)


def _add(
    connection: sqlite3.Connection,
    new: NewDelivery,
    number: int,
    state: DeliveryState,
    *,
    now: float,
    limits: QuarantineLimits,
) -> PutResult:
    key = _duplicate_key(new.signature)
    # A query first: ON CONFLICT would be 2 us faster, but it uses an id, and so writes, for each duplicate.
    if connection.execute(KNOWN, (number, key)).fetchone():
        return "duplicate"
    if state is DeliveryState.QUARANTINED:
        count, total = connection.execute(QUARANTINED, (number,)).fetchone()
        limits.check_room(count, total, len(new.body))
    added = connection.execute(ADD, (number, key, state.value, now, new.candidate))
    connection.execute(ADD_BODY, (added.lastrowid, new.body))
    return "stored"


def _duplicate_key(signature: str) -> bytes | str:
    """Return a signature as stored: bytes if it is lower-case hex, else the text, so that no two become equal."""
    try:
        content = bytes.fromhex(signature)
    except ValueError:
        return signature
    return content if content.hex() == signature else signature


def claim(
    connection: sqlite3.Connection, limit: int, *, lease: float, ordered: bool, halt: bool, now: float
) -> list[Lease]:
    """See `Store.claim`."""
    connection.execute(WAKE, (now, now + MAX_SKEW))
    if not connection.execute(ANY_WAITING).fetchone():
        return []  # nothing to claim, so do not step through registrations
    chosen = connection.execute(OLDEST_IN_ORDER, (halt, limit)) if ordered else connection.execute(OLDEST, (limit,))
    leases = [Lease(**values, expires_at=now + lease) for values in _named(chosen)]
    connection.executemany(LEASE, [(now, one.expires_at, one.id) for one in leases])
    return leases


def extend(connection: sqlite3.Connection, lease: Lease, *, seconds: float, now: float) -> bool:
    """See `Store.extend`."""
    return _changed(connection, EXTEND, now, now + seconds, lease=lease, now=now)


def done(connection: sqlite3.Connection, leases: Sequence[Lease], *, now: float) -> list[bool]:
    """See `Store.ack`; for several leases."""
    finished = [_changed(connection, DONE, lease=lease, now=now) for lease in leases]
    connection.executemany(DROP_BODY, [(lease.id,) for lease, is_done in zip(leases, finished, strict=True) if is_done])
    return finished


def fail(connection: sqlite3.Connection, lease: Lease, *, error: str, retry_in: float | None, now: float) -> bool:
    """See `Store.fail`."""
    if retry_in is None:
        return _changed(connection, FAIL, DeliveryState.DEAD.value, None, None, error, lease=lease, now=now)
    delayed = DeliveryState.DELAYED.value
    return _changed(connection, FAIL, delayed, now, now + retry_in, error, lease=lease, now=now)


def release(connection: sqlite3.Connection, lease: Lease, *, now: float) -> bool:
    """See `Store.release`."""
    return _changed(connection, RELEASE, lease=lease, now=now)


def _changed(connection: sqlite3.Connection, statement: str, *values: Any, lease: Lease, now: float) -> bool:
    """Run a statement that ends in `HELD`; return whether the lease held the delivery."""
    return connection.execute(statement, (*values, lease.id, lease.fence, now, now + MAX_SKEW)).rowcount == 1


def health(
    connection: sqlite3.Connection,
    *,
    writable: bool,
    secrets_readable: bool,
    log_bytes: int,
    problems: tuple[str, ...],
    now: float,
) -> StoreHealth:
    """See `Store.health`; *writable*: whether a write just succeeded."""
    (unfinished,) = connection.execute(COUNT_UNFINISHED).fetchone()
    (leased,) = connection.execute(COUNT_LEASED, (now, now + MAX_SKEW)).fetchone()
    apart = dict(connection.execute(APART).fetchall())
    firsts = [*connection.execute(FIRST_WAITING), *connection.execute(FIRST_OTHER)]
    first = min((received_at for (received_at,) in firsts if received_at is not None), default=None)
    return StoreHealth(
        waiting=unfinished - leased,
        leased=leased,
        quarantined=apart.get(DeliveryState.QUARANTINED, 0),
        dead=apart.get(DeliveryState.DEAD, 0),
        oldest_age=None if first is None else max(0.0, now - first),
        writable=writable,
        secrets_readable=secrets_readable,
        webhooks=len(connection.execute(HEARTBEATS).fetchall()),
        log_bytes=log_bytes,
        problems=problems,
    )


def probe(connection: sqlite3.Connection, *, now: float) -> None:
    """Write one row, to test that writing works."""
    connection.execute(PROBE, (now,))


def integrity(connection: sqlite3.Connection) -> list[str]:
    """See `SQLiteStore.integrity_check`."""
    found = [problem for (problem,) in connection.execute("PRAGMA integrity_check")]
    orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
    broken = [f"a row of {table} refers to a missing row of {parent}" for table, _, parent, _ in orphans[:100]]
    return [*(problem for problem in found if problem != "ok"), *broken][:100]


def dead_letters(connection: sqlite3.Connection, *, limit: int, after: int) -> list[StoredDelivery]:
    """See `Store.dead_letters`."""
    return [
        StoredDelivery(state=DeliveryState.DEAD, **values)
        for values in _named(connection.execute(DEAD_LETTERS, (after, limit)))
    ]


def requeue(connection: sqlite3.Connection, id: int) -> bool:
    """See `Store.requeue`."""
    return connection.execute(REQUEUE, (id,)).rowcount == 1


def purge(connection: sqlite3.Connection, *, before: float, dead: bool) -> tuple[int, int]:
    """Run one step of `Store.purge`; return how many deliveries and registrations it deleted. Two zeros: done."""
    for state in ("done", "dead") if dead else ("done",):
        purgeable = connection.execute(PURGEABLE, (state, before, ROWS_AT_ONCE)).fetchall()
        chosen = list(_for_one_step(purgeable))
        if chosen:
            connection.executemany(PURGE, chosen)
            return len(chosen), 0
    return 0, connection.execute(PURGE_REGISTRATIONS, (before, ROWS_AT_ONCE)).rowcount


def _for_one_step(purgeable: Iterable[tuple[int, int]]) -> Iterator[tuple[int]]:
    """Yield the ids to delete in one step, given ids and sizes of bodies."""
    total = 0
    for id, size in purgeable:
        yield (id,)
        total += size
        if total >= BYTES_AT_ONCE:
            return


def _named(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor)
