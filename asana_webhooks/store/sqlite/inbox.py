"""The deliveries of the SQLite store: each function does the work of one method inside a transaction."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import count, islice
from typing import Any

from asana_webhooks.errors import StoreFullError
from asana_webhooks.store.base import (
    MAX_COUNT,
    DeliveryState,
    Lease,
    NewDelivery,
    PutResult,
    RegistrationState,
    StoredDelivery,
)
from asana_webhooks.store.rules import (
    MAX_SKEW,
    QuarantineLimits,
    effective_state,
    event_time,
    initial_state,
    is_alone,
    runs,
)
from asana_webhooks.store.sqlite.file import sqlite3

__all__ = [
    "ack",
    "claim",
    "counts",
    "deliveries",
    "delivery",
    "discard",
    "extend",
    "fail",
    "give_turns",
    "integrity",
    "is_idle",
    "purge_dead",
    "purge_seen",
    "put",
    "release",
    "requeue",
]

# Lists of ids are passed as one JSON text, so that a statement is the same for any number of them.

# put
PLACE = """
    SELECT number, state, deadline, candidate, EXISTS (
        SELECT 1 FROM inbox WHERE inbox.registration = registrations.number AND inbox.state = 'open'
    )
    FROM registrations WHERE id = ?
"""
CANDIDATES = "SELECT id FROM candidates WHERE registration = ?"
KNOWN = "SELECT 1 FROM seen WHERE (event_at, signature, registration) = (?, ?, ?)"
ADD_SEEN = "INSERT INTO seen (event_at, signature, registration, received_at)"
ADD_UNSEEN = f"{ADD_SEEN} VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
ADD = "INSERT INTO inbox (registration, state, received_at, turn, candidate)"
ADD_BODY = "INSERT INTO bodies (delivery, body)"
QUARANTINED = """
    SELECT count(*), coalesce(sum(length(body)), 0) FROM inbox JOIN bodies ON delivery = id
    WHERE registration = ? AND state = 'quarantined'
"""

# claim
DUE = "(fence = 0) IN (0, 1) AND due_at <= ?"
IDLE = f"""
    SELECT NOT EXISTS (SELECT 1 FROM inbox WHERE state = 'open' AND due_at IS NULL)
        AND NOT EXISTS (SELECT 1 FROM inbox WHERE due_at IS NOT NULL AND {DUE})
        AND NOT EXISTS (SELECT 1 FROM inbox WHERE since > ?)
"""  # noqa: S608 - made of constants, as the ones below
WAKE_DUE = f"UPDATE inbox SET since = NULL, due_at = NULL WHERE due_at IS NOT NULL AND {DUE}"  # noqa: S608
WAKE_FUTURE = "UPDATE inbox SET since = NULL, due_at = NULL WHERE since > ?"
FIRST = "SELECT id FROM inbox WHERE turn IS NOT NULL AND due_at IS NULL ORDER BY turn, id LIMIT ?"
FIRST_NOT_HALTED = """
    SELECT id FROM inbox WHERE turn IS NOT NULL AND due_at IS NULL AND NOT EXISTS (
        SELECT 1 FROM inbox AS earlier
        WHERE earlier.registration = inbox.registration AND earlier.state = 'dead' AND earlier.id < inbox.id
    )
    ORDER BY turn, id LIMIT ?
"""
OLDEST = "SELECT id FROM inbox WHERE state = 'open' AND due_at IS NULL ORDER BY id LIMIT ?"
LEASABLE = """
    SELECT inbox.id AS id, unanswered, attempts + 1 AS attempt, registrations.id AS registration, label, webhook_gid,
        resource, received_at, done, body
    FROM inbox JOIN registrations ON number = registration JOIN bodies ON delivery = inbox.id
    WHERE inbox.id IN (SELECT value FROM json_each(?)) ORDER BY inbox.id
"""
LEASE = """
    UPDATE inbox SET since = ?, due_at = ?, fence = ?, attempts = attempts + 1, unanswered = unanswered + 1,
        turn = iif(turn IS NULL, NULL, ?)
    WHERE id IN (SELECT value FROM json_each(?))
"""

# Leases
HELD = "SELECT id, registration, fence, turn IS NOT NULL FROM inbox WHERE id IN (SELECT value FROM json_each(?))"
EXTEND = "UPDATE inbox SET since = ?, due_at = ? WHERE id = ? AND fence = ?"
DELAY = """
    UPDATE inbox SET since = ?, due_at = ?, error = ?, done = ?, fence = 0, unanswered = 0 WHERE id = ? AND fence = ?
"""
BURY = """
    UPDATE inbox SET state = 'dead', turn = NULL, since = NULL, due_at = NULL, error = ?, done = ?, fence = 0,
        unanswered = 0
    WHERE id = ? AND fence = ? RETURNING registration
"""
RELEASE = """
    UPDATE inbox SET since = NULL, due_at = NULL, fence = 0, attempts = attempts - 1, unanswered = unanswered - 1
    WHERE id = ? AND fence = ?
"""
GIVE_TURNS = """
    UPDATE inbox SET turn = ? WHERE turn IS NULL AND id IN (
        SELECT (SELECT min(id) FROM inbox WHERE registration = value AND state = 'open') FROM json_each(?)
    )
"""
DELETE = "DELETE FROM inbox WHERE id IN (SELECT value FROM json_each(?))"
DELETE_BODIES = "DELETE FROM bodies WHERE delivery IN (SELECT value FROM json_each(?))"

# health
COUNT = f"SELECT count(*) FROM (SELECT 1 FROM inbox WHERE {{}} LIMIT {MAX_COUNT})"  # noqa: S608
FIRST_RECEIVED = f"""
    SELECT min(received_at) FROM (
        SELECT * FROM (SELECT received_at FROM inbox WHERE state = 'open' AND due_at IS NULL ORDER BY id LIMIT 1)
        UNION ALL
        SELECT * FROM (SELECT received_at FROM inbox WHERE due_at IS NOT NULL LIMIT {MAX_COUNT})
    )
"""  # noqa: S608

# Maintenance
STORED = """
    SELECT inbox.id AS id, inbox.state AS state, registrations.id AS registration, label, webhook_gid, resource,
        received_at, since, due_at, fence, attempts, error, done, body
    FROM inbox JOIN registrations ON number = registration JOIN bodies ON delivery = inbox.id
"""
RUNS = "due_at > :now AND since <= :latest"
IN_STATE = {
    DeliveryState.QUARANTINED: "inbox.state <> 'open' AND inbox.state = 'quarantined'",
    DeliveryState.WAITING: f"inbox.state = 'open' AND NOT coalesce({RUNS}, 0)",
    DeliveryState.DELAYED: f"due_at IS NOT NULL AND fence = 0 AND {RUNS}",
    DeliveryState.LEASED: f"due_at IS NOT NULL AND fence <> 0 AND {RUNS}",
    DeliveryState.DEAD: "inbox.state <> 'open' AND inbox.state = 'dead'",
}
# If the requeued one is first now, the next one had the turn.
LOSE_TURN = """
    UPDATE inbox SET turn = NULL WHERE turn IS NOT NULL AND id = (
        SELECT min(id) FROM inbox WHERE registration = ? AND state = 'open' AND id > ?
    )
"""
REQUEUE = "UPDATE inbox SET state = 'open', attempts = 0 WHERE id = ? AND state = 'dead' RETURNING registration"
DISCARD = """
    DELETE FROM inbox WHERE id = ? AND NOT (fence <> 0 AND coalesce(due_at > ? AND since <= ?, 0))
    RETURNING registration
"""
END_OF_STEP = """
    SELECT event_at, signature, registration FROM seen
    WHERE (event_at, signature, registration) > (?, ?, ?) AND event_at < ?
    ORDER BY event_at, signature, registration LIMIT 1 OFFSET ?
"""
PURGE_SEEN = """
    DELETE FROM seen
    WHERE (event_at, signature, registration) > (?, ?, ?) AND (event_at, signature, registration) <= (?, ?, ?)
        AND event_at < ? AND received_at < ?
"""
DEAD = """
    SELECT id, received_at < ?, length(body) FROM inbox JOIN bodies ON delivery = id
    WHERE state <> 'open' AND state = 'dead' AND id > ? ORDER BY id LIMIT ?
"""

KEYS_AT_ONCE = 2_000
"""How many keys `purge_seen` looks at in one transaction, so that other operations run in between."""
DEAD_AT_ONCE = 500
"""The same for `purge_dead`."""
BYTES_AT_ONCE = 4 * 1024**2
"""Once its bodies reach this size in bytes, a step of `purge_dead` ends: overwriting deleted data fills the log."""
ROWS_AT_ONCE = 50
"""How many rows one statement inserts; each number of rows is a statement of its own."""

Key = tuple[int, bytes | str, int]
FIRST_KEY: Key = (-1, b"", 0)


def put(
    connection: sqlite3.Connection, new: Sequence[NewDelivery], *, now: float, limits: QuarantineLimits
) -> tuple[list[PutResult | StoreFullError], set[int]]:
    """See `Store.put`; for several deliveries. Also return the numbers of the registrations that got one."""
    places, idle = _places(connection, new, now=now)
    outcomes: list[PutResult | StoreFullError] = ["refused"] * len(new)
    waiting: dict[int, tuple[Key, NewDelivery]] = {}
    for index, one in enumerate(new):
        number, state = places.get((one.registration, one.candidate), (0, None))
        key = event_time(one.body), _as_stored(one.signature), number
        if state is DeliveryState.WAITING:
            waiting[index] = key, one
        elif state is DeliveryState.QUARANTINED:
            outcomes[index] = _quarantine(connection, key, one, now=now, limits=limits)
    while batch := list(islice(waiting, ROWS_AT_ONCE)):
        results = _insert(connection, [waiting.pop(index) for index in batch], "open", now=now, idle=idle)
        for index, result in zip(batch, results, strict=True):
            outcomes[index] = result
    stored = {one.registration for one, outcome in zip(new, outcomes, strict=True) if outcome == "stored"}
    return outcomes, {number for (id, _), (number, _) in places.items() if id in stored}


def _places(
    connection: sqlite3.Connection, new: Iterable[NewDelivery], *, now: float
) -> tuple[dict[tuple[str, str | None], tuple[int, DeliveryState]], set[int]]:
    """Return where deliveries go, and the numbers of the registrations that have no open delivery.

    The places are the number of a registration and the state of its new deliveries, by its id and their candidate;
    without those that are refused.
    """
    candidates: dict[str, set[str | None]] = {}
    for one in new:
        candidates.setdefault(one.registration, set()).add(one.candidate)
    places: dict[tuple[str, str | None], tuple[int, DeliveryState]] = {}
    idle: set[int] = set()
    for id in candidates:
        found = connection.execute(PLACE, (id,)).fetchone()
        if found is None:
            continue
        number, state, deadline, confirmed, has_open = found
        known = {name for (name,) in connection.execute(CANDIDATES, (number,))} if state == "pending" else ()
        effective = effective_state(RegistrationState(state), deadline=deadline, now=now)
        for candidate in candidates[id]:
            initial = initial_state(effective, confirmed=confirmed, candidates=known, candidate=candidate)
            if initial is not None:
                places[id, candidate] = number, initial
        if not has_open:
            idle.add(number)
    return places, idle


def _quarantine(
    connection: sqlite3.Connection, key: Key, new: NewDelivery, *, now: float, limits: QuarantineLimits
) -> PutResult | StoreFullError:
    if connection.execute(KNOWN, key).fetchone():
        return "duplicate"
    try:
        number, size = connection.execute(QUARANTINED, (key[2],)).fetchone()
        limits.check_room(number, size, len(new.body))
    except StoreFullError as error:
        return error
    return _insert(connection, [(key, new)], "quarantined", now=now, idle=set())[0]


def _insert(
    connection: sqlite3.Connection, rows: Sequence[tuple[Key, NewDelivery]], state: str, *, now: float, idle: set[int]
) -> list[PutResult]:
    """Add deliveries that are not known yet. The first of a registration that is *idle* gets its turn."""
    results = _add_keys(connection, [(*key, now) for key, _ in rows])
    fresh = [row for row, result in zip(rows, results, strict=True) if result == "stored"]
    if fresh:
        added: list[Any] = []
        for (_, _, number), new in fresh:
            added += number, state, now, now if number in idle else None, new.candidate
            idle.discard(number)
        last = connection.execute(_insertion(ADD, 5, len(fresh)), added).lastrowid or 0
        ids = range(last + 1 - len(fresh), last + 1)
        bodies = [value for id, (_, new) in zip(ids, fresh, strict=True) for value in (id, new.body)]
        connection.execute(_insertion(ADD_BODY, 2, len(fresh)), bodies)
    return results


def _add_keys(connection: sqlite3.Connection, keys: Sequence[tuple[Any, ...]]) -> list[PutResult]:
    try:
        connection.execute(_insertion(ADD_SEEN, 4, len(keys)), [value for key in keys for value in key])
    except sqlite3.IntegrityError:  # one is known, so none was added: add them one by one
        return ["stored" if connection.execute(ADD_UNSEEN, key).rowcount else "duplicate" for key in keys]
    return ["stored"] * len(keys)


@cache
def _insertion(start: str, columns: int, rows: int) -> str:
    """Return a statement that inserts so many rows."""
    row = f"({', '.join('?' * columns)})"
    return f"{start} VALUES {', '.join([row] * rows)}"


def _as_stored(signature: str) -> bytes | str:
    """Return a signature as stored: bytes if it is lower-case hex, else the text, so that no two become equal."""
    try:
        content = bytes.fromhex(signature)
    except ValueError:
        return signature
    return content if content.hex() == signature else signature


def is_idle(connection: sqlite3.Connection, *, now: float) -> bool:
    """Return whether nothing can be claimed."""
    return bool(connection.execute(IDLE, (now, now + MAX_SKEW)).fetchone()[0])


def claim(
    connection: sqlite3.Connection, limit: int, *, lease: float, ordered: bool, halt: bool, now: float
) -> list[Lease]:
    """See `Store.claim`. Half of what is not *ordered* goes to the registrations whose turn it is."""
    connection.execute(WAKE_DUE, (now,))
    connection.execute(WAKE_FUTURE, (now + MAX_SKEW,))
    first = connection.execute(FIRST_NOT_HALTED if halt else FIRST, (limit if ordered else (limit + 1) // 2,))
    chosen = {id for (id,) in first}
    if not ordered and limit:
        oldest = (id for (id,) in connection.execute(OLDEST, (limit,)).fetchall())
        chosen.update(islice((id for id in oldest if id not in chosen), limit - len(chosen)))
    if not chosen:
        return []
    rows = list(_named(connection.execute(LEASABLE, (json.dumps(list(chosen)),))))
    rows = [row for row in rows if is_alone(row["unanswered"])][:1] or rows
    fence = random.getrandbits(62) + 1  # 0 is no fence
    connection.execute(LEASE, (now, now + lease, fence, now, json.dumps([row["id"] for row in rows])))
    return [
        Lease(
            fence=fence,
            expires_at=now + lease,
            alone=is_alone(row.pop("unanswered")),
            done=tuple(json.loads(row.pop("done"))),
            **row,
        )
        for row in rows
    ]


def extend(connection: sqlite3.Connection, lease: Lease, *, seconds: float, now: float) -> bool:
    """See `Store.extend`."""
    return connection.execute(EXTEND, (now, now + seconds, lease.id, lease.fence)).rowcount == 1


def ack(connection: sqlite3.Connection, leases: Sequence[Lease], *, now: float) -> list[bool]:
    """See `Store.ack`; for several leases."""
    held = connection.execute(HELD, (json.dumps([lease.id for lease in leases]),)).fetchall()
    found = {(id, fence): (number, has_turn) for id, number, fence, has_turn in held if fence}
    outcomes = []
    acked: list[int] = []
    without_head: set[int] = set()
    for lease in leases:
        number, has_turn = found.pop((lease.id, lease.fence), (None, False))
        outcomes.append(number is not None)
        if number is not None:
            acked.append(lease.id)
            without_head.update([number] if has_turn else ())
    _delete(connection, acked)
    give_turns(connection, without_head, now=now)
    return outcomes


def _delete(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    if ids:
        connection.execute(DELETE, (json.dumps(ids),))
        connection.execute(DELETE_BODIES, (json.dumps(ids),))


def give_turns(connection: sqlite3.Connection, registrations: Iterable[int], *, now: float) -> None:
    """Give the first open delivery of each registration its turn, if it has none."""
    numbers = list(registrations)
    if numbers:
        connection.execute(GIVE_TURNS, (now, json.dumps(numbers)))


def fail(
    connection: sqlite3.Connection,
    lease: Lease,
    *,
    error: str,
    retry_in: float | None,
    done: Sequence[int],
    now: float,
) -> bool:
    """See `Store.fail`; *done*: all events that are done now."""
    finished = json.dumps(done)
    if retry_in is not None:
        values = (now, now + retry_in, error, finished, lease.id, lease.fence)
        return connection.execute(DELAY, values).rowcount == 1
    buried = connection.execute(BURY, (error, finished, lease.id, lease.fence)).fetchall()
    give_turns(connection, [number for (number,) in buried], now=now)
    return bool(buried)


def release(connection: sqlite3.Connection, lease: Lease) -> bool:
    """See `Store.release`."""
    return connection.execute(RELEASE, (lease.id, lease.fence)).rowcount == 1


def counts(connection: sqlite3.Connection, *, now: float) -> dict[str, Any]:
    """Return the counts of `StoreHealth`, and its *oldest_age*."""

    def number(condition: str) -> int:
        (found,) = connection.execute(COUNT.format(condition), {"now": now, "latest": now + MAX_SKEW}).fetchone()
        return int(found)

    leased = number(f"due_at IS NOT NULL AND (fence = 0) = 0 AND {RUNS}")
    unfinished = number("state = 'open' AND due_at IS NULL") + number("due_at IS NOT NULL")
    (first,) = connection.execute(FIRST_RECEIVED).fetchone()
    return {
        "waiting": min(max(unfinished - leased, 0), MAX_COUNT),
        "leased": leased,
        "quarantined": number("state <> 'open' AND state = 'quarantined'"),
        "dead": number("state <> 'open' AND state = 'dead'"),
        "oldest_age": None if first is None else max(0.0, now - first),
    }


def integrity(connection: sqlite3.Connection) -> list[str]:
    """See `SQLiteStore.integrity_check`."""
    found = [problem for (problem,) in connection.execute("PRAGMA integrity_check")]
    orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
    broken = [f"a row of {table} refers to a missing row of {parent}" for table, _, parent, _ in orphans[:100]]
    return [*(problem for problem in found if problem != "ok"), *broken][:100]


def deliveries(
    connection: sqlite3.Connection, state: DeliveryState, *, after: int, limit: int, now: float
) -> list[StoredDelivery]:
    """See `Store.deliveries`."""
    statement = f"{STORED} WHERE {IN_STATE[state]} AND inbox.id > :after ORDER BY inbox.id LIMIT :limit"
    values = {"now": now, "latest": now + MAX_SKEW, "after": after, "limit": limit}
    return [_stored(row, now) for row in _named(connection.execute(statement, values))]


def delivery(connection: sqlite3.Connection, id: int, *, now: float) -> StoredDelivery | None:
    """See `Store.delivery`."""
    found = _named(connection.execute(f"{STORED} WHERE inbox.id = ?", (id,)))
    return next((_stored(row, now) for row in found), None)


def _stored(row: dict[str, Any], now: float) -> StoredDelivery:
    state, since, due_at, fence = (row.pop(name) for name in ("state", "since", "due_at", "fence"))
    is_due = due_at is None or not runs(since=since, until=due_at, now=now)
    if state == "open":
        state = DeliveryState.WAITING if is_due else DeliveryState.LEASED if fence else DeliveryState.DELAYED
    done = tuple(json.loads(row.pop("done")))
    return StoredDelivery(state=DeliveryState(state), due_at=None if is_due else due_at, done=done, **row)


def requeue(connection: sqlite3.Connection, id: int, *, now: float) -> bool:
    """See `Store.requeue`."""
    requeued = connection.execute(REQUEUE, (id,)).fetchall()
    for (number,) in requeued:
        connection.execute(LOSE_TURN, (number, id))
        give_turns(connection, [number], now=now)
    return bool(requeued)


def discard(connection: sqlite3.Connection, id: int, *, now: float) -> bool:
    """See `Store.discard`."""
    discarded = connection.execute(DISCARD, (id, now, now + MAX_SKEW)).fetchall()
    if discarded:
        _delete(connection, [id])  # its body
        give_turns(connection, [number for (number,) in discarded], now=now)
    return bool(discarded)


def purge_seen(connection: sqlite3.Connection, after: Key, *, before: float) -> tuple[Key | None, int]:
    """Delete old keys that come *after* a key; return where the next step begins, or ``None``, and how many went."""
    end = connection.execute(END_OF_STEP, (*after, before * 1000, KEYS_AT_ONCE - 1)).fetchone()
    last: Key = end or (int(before * 1000), b"", 0)
    gone = connection.execute(PURGE_SEEN, (*after, *last, before * 1000, before)).rowcount
    return end, gone


def purge_dead(connection: sqlite3.Connection, after: int, *, before: float) -> tuple[int | None, int]:
    """Delete old dead letters whose ids come *after* one; return as `purge_seen` does."""
    rows = connection.execute(DEAD, (before, after, DEAD_AT_ONCE)).fetchall()
    old: list[int] = []
    size = 0
    for id, is_old, length in rows:
        after = id
        if is_old:
            old.append(id)
            size += length
        if size >= BYTES_AT_ONCE:
            break
    _delete(connection, old)
    return (after if rows else None), len(old)


def _named(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor)
