"""The registrations of the SQLite store: each function is what one method does inside a transaction."""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import starmap
from typing import Any

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import MAX_CANDIDATES, Registration, RegistrationState, candidate_id
from asana_webhooks.store.rules import as_found

__all__ = ["close", "confirm", "find", "heartbeat", "heartbeats", "offer", "open_", "sealed", "sweep"]

COLUMNS = "number, id, resource, state, deadline, webhook_gid, last_heartbeat_at, secret"
"""What `_registration` reads, through `sealed`."""
FIND = f"SELECT {COLUMNS} FROM registrations WHERE id = ?"  # noqa: S608 - made of constants, as the next one
OVERDUE = f"""
    SELECT {COLUMNS} FROM registrations WHERE state = 'pending' AND deadline <= ? ORDER BY number
"""  # noqa: S608
EXISTS = "SELECT 1 FROM registrations WHERE id = ?"
ADD = "INSERT INTO registrations (id, resource, state, deadline) VALUES (?, ?, 'pending', ?)"
CANDIDATES = "SELECT secret FROM candidates WHERE registration = ? ORDER BY number"
OFFERABLE = "SELECT number FROM registrations WHERE id = ? AND state = 'pending' AND deadline > ?"
ADD_CANDIDATE = "INSERT INTO candidates (registration, id, secret) VALUES (?, ?, ?)"
ECHO = "UPDATE registrations SET echoed = 1 WHERE number = ?"
CONFIRM = "UPDATE registrations SET state = 'confirmed', webhook_gid = ?, secret = ? WHERE number = ?"
CLOSE = "UPDATE registrations SET state = 'closed', secret = NULL WHERE number = ?"
CLOSABLE = "SELECT number, echoed FROM registrations WHERE id = ?"
DROP_CANDIDATES = "DELETE FROM candidates WHERE registration = ?"
RELEASE = """
    UPDATE deliveries SET state = 'waiting'
    WHERE state = 'quarantined' AND registration = ? AND candidate = ?
"""
DROP_QUARANTINED = "DELETE FROM deliveries WHERE state = 'quarantined' AND registration = ?"
BEAT = """
    UPDATE registrations SET last_heartbeat_at = ?
    WHERE id = ? AND (state = 'confirmed' OR (state = 'pending' AND deadline > ?))
"""
CONFIRMED = "SELECT webhook_gid, last_heartbeat_at FROM registrations WHERE state = 'confirmed'"


def sealed(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield rows whose last column is a secret with that wrapped, so that no local variable ever holds its text."""
    return starmap(_seal, rows)


def _seal(*columns: Any) -> tuple[Any, ...]:
    return (*columns[:-1], None if columns[-1] is None else Secret(columns[-1]))


def open_(connection: sqlite3.Connection, id: str, *, resource: str, deadline: float) -> None:
    """See `Store.open`."""
    if connection.execute(EXISTS, (id,)).fetchone():
        raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
    connection.execute(ADD, (id, resource, deadline))


def offer(connection: sqlite3.Connection, id: str, secret: Secret, *, now: float) -> bool:
    """See `Store.offer`."""
    found = connection.execute(OFFERABLE, (id, now)).fetchone()
    if found is None:
        return False
    (number,) = found
    known = _candidates(connection, number)
    if secret in known:
        return True
    if len(known) >= MAX_CANDIDATES:
        return False
    connection.execute(ADD_CANDIDATE, (number, candidate_id(secret), secret.reveal()))
    connection.execute(ECHO, (number,))
    return True


def confirm(connection: sqlite3.Connection, id: str, *, webhook_gid: str, secret: Secret, now: float) -> bool:
    """See `Store.confirm`."""
    row = next(sealed(connection.execute(FIND, (id,))), None)
    if row is None:
        return False
    number, registration = row[0], as_found(_registration(connection, row), now=now)
    if registration.state is RegistrationState.CONFIRMED:
        return registration.webhook_gid == webhook_gid and registration.secret == secret
    if secret not in registration.candidates:
        return False
    connection.execute(CONFIRM, (webhook_gid, secret.reveal(), number))
    connection.execute(DROP_CANDIDATES, (number,))
    connection.execute(RELEASE, (number, candidate_id(secret)))
    connection.execute(DROP_QUARANTINED, (number,))
    return True


def close(connection: sqlite3.Connection, id: str) -> bool:
    """See `Store.close`."""
    found = connection.execute(CLOSABLE, (id,)).fetchone()
    if found is None:
        return False
    number, echoed = found
    _end(connection, number)
    return bool(echoed)


def find(connection: sqlite3.Connection, id: str, *, now: float) -> Registration | None:
    """See `Store.find`."""
    row = next(sealed(connection.execute(FIND, (id,))), None)
    return None if row is None else as_found(_registration(connection, row), now=now)


def sweep(connection: sqlite3.Connection, *, now: float) -> list[Registration]:
    """See `Store.sweep`."""
    rows = list(sealed(connection.execute(OVERDUE, (now,))))
    overdue = [_registration(connection, row) for row in rows]
    for number, *_ in rows:
        _end(connection, number)
    return overdue


def heartbeat(connection: sqlite3.Connection, id: str, *, now: float) -> None:
    """See `Store.heartbeat`."""
    connection.execute(BEAT, (now, id, now))


def heartbeats(connection: sqlite3.Connection) -> dict[str, float | None]:
    """Return `StoreHealth.heartbeats`."""
    return dict(connection.execute(CONFIRMED).fetchall())


def _end(connection: sqlite3.Connection, number: int) -> None:
    connection.execute(CLOSE, (number,))
    connection.execute(DROP_CANDIDATES, (number,))
    connection.execute(DROP_QUARANTINED, (number,))


def _candidates(connection: sqlite3.Connection, number: int) -> tuple[Secret, ...]:
    return tuple(secret for (secret,) in sealed(connection.execute(CANDIDATES, (number,))))


def _registration(connection: sqlite3.Connection, row: tuple[Any, ...]) -> Registration:
    number, name, resource, state, deadline, webhook_gid, last_heartbeat_at, secret = row
    return Registration(
        id=name,
        resource=resource,
        state=RegistrationState(state),
        deadline=deadline,
        candidates=_candidates(connection, number),
        secret=secret,
        webhook_gid=webhook_gid,
        last_heartbeat_at=last_heartbeat_at,
    )
