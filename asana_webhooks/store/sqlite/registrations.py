"""The registrations of the SQLite store: each function does the work of one method inside a transaction."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from attrs import field, frozen

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import MAX_CANDIDATES, Registration, RegistrationState
from asana_webhooks.store.rules import as_found, effective_state
from asana_webhooks.store.secret_box import Sealer, StoredSecret
from asana_webhooks.store.sqlite.file import sqlite3

__all__ = [
    "StaleSecret",
    "close",
    "confirm",
    "end_overdue",
    "find",
    "heartbeat",
    "offer",
    "open_",
    "open_or_note",
    "overdue",
    "replace_secret",
    "stale",
    "unreadable",
]

_log = logging.getLogger(__name__)

COLUMNS = "number, id, resource, state, deadline, echoed, webhook_gid, last_heartbeat_at, secret, key_id"
"""The columns that `_registration` reads."""
FIND = f"SELECT {COLUMNS} FROM registrations WHERE id = ?"  # noqa: S608 - made of constants, as the next one
OVERDUE = f"""
    SELECT {COLUMNS} FROM registrations WHERE state = 'pending' AND deadline <= ? ORDER BY number
"""  # noqa: S608
STILL_OVERDUE = "SELECT number FROM registrations WHERE id = ? AND state = 'pending' AND deadline <= ?"
CANDIDATE_IDS = "SELECT id FROM candidates WHERE registration = ?"
CONFIRMABLE = "SELECT number, state, deadline, webhook_gid, candidate FROM registrations WHERE id = ?"
EXISTS = "SELECT 1 FROM registrations WHERE id = ?"
ADD = "INSERT INTO registrations (id, resource, state, deadline) VALUES (?, ?, 'pending', ?)"
CANDIDATES = "SELECT secret, key_id FROM candidates WHERE registration = ? ORDER BY number"
OFFERABLE = "SELECT number FROM registrations WHERE id = ? AND state = 'pending' AND deadline > ?"
ADD_CANDIDATE = "INSERT INTO candidates (registration, id, secret, key_id) VALUES (?, ?, ?, ?)"
ECHO = "UPDATE registrations SET echoed = 1 WHERE number = ?"
# The secret is copied as sealed, so confirming needs no secret box.
CONFIRM = """
    UPDATE registrations SET state = 'confirmed', webhook_gid = ?, candidate = ?, (secret, key_id) = (
        SELECT candidates.secret, candidates.key_id FROM candidates
        WHERE candidates.registration = registrations.number AND candidates.id = ?
    )
    WHERE number = ?
"""
CLOSE = "UPDATE registrations SET state = 'closed', secret = NULL, key_id = NULL, candidate = NULL WHERE number = ?"
CLOSABLE = "SELECT number, echoed FROM registrations WHERE id = ?"
DROP_CANDIDATES = "DELETE FROM candidates WHERE registration = ?"
RELEASE = """
    UPDATE deliveries SET state = 'waiting'
    WHERE state IN ('quarantined', 'dead') AND state = 'quarantined' AND registration = ? AND candidate = ?
"""
DROP_QUARANTINED = """
    DELETE FROM deliveries WHERE state IN ('quarantined', 'dead') AND state = 'quarantined' AND registration = ?
"""
BEAT = """
    UPDATE registrations SET last_heartbeat_at = ?
    WHERE id = ? AND (state = 'confirmed' OR (state = 'pending' AND deadline > ?))
"""
# One secret of each key in use, the oldest: it fails even if newer ones are sealed with another key of the same id.
OLDEST_SECRETS = """
    SELECT key_id, secret, min(number) FROM registrations
    WHERE state = 'confirmed' AND key_id IS NOT NULL GROUP BY key_id
"""
OLDEST_CANDIDATES = """
    SELECT candidates.key_id, candidates.secret, min(candidates.number)
    FROM candidates JOIN registrations ON registrations.number = candidates.registration
    WHERE candidates.key_id IS NOT NULL AND state = 'pending' AND deadline > ? GROUP BY candidates.key_id
"""
STALE = "SELECT number, secret, key_id FROM {table} WHERE secret IS NOT NULL AND key_id IS NOT ?"
REPLACE = "UPDATE {table} SET secret = ?, key_id = ? WHERE number = ? AND secret = ? AND key_id IS ?"


def open_(connection: sqlite3.Connection, id: str, *, resource: str, ttl: float, now: float) -> None:
    """See `Store.open_registration`."""
    if connection.execute(EXISTS, (id,)).fetchone():
        raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
    connection.execute(ADD, (id, resource, now + ttl))


def offer(connection: sqlite3.Connection, id: str, secret: StoredSecret, *, candidate: str, now: float) -> bool:
    """See `Store.add_candidate`; *candidate* is the secret's `candidate_id`."""
    found = connection.execute(OFFERABLE, (id, now)).fetchone()
    if found is None:
        return False
    (number,) = found
    known = _candidate_ids(connection, number)
    if candidate in known:
        return True
    if len(known) >= MAX_CANDIDATES:
        return False
    connection.execute(ADD_CANDIDATE, (number, candidate, *secret))
    connection.execute(ECHO, (number,))
    return True


def confirm(connection: sqlite3.Connection, id: str, *, webhook_gid: str, candidate: str, now: float) -> bool:
    """See `Store.confirm_registration`; *candidate* is the secret's `candidate_id`."""
    found = connection.execute(CONFIRMABLE, (id,)).fetchone()
    if found is None:
        return False
    number, state, deadline, *confirmed_with = found
    effective = effective_state(RegistrationState(state), deadline=deadline, now=now)
    if effective is RegistrationState.CONFIRMED:
        return bool([webhook_gid, candidate] == confirmed_with)
    if effective is RegistrationState.CLOSED or candidate not in _candidate_ids(connection, number):
        return False
    connection.execute(CONFIRM, (webhook_gid, candidate, candidate, number))
    connection.execute(DROP_CANDIDATES, (number,))
    connection.execute(RELEASE, (number, candidate))
    connection.execute(DROP_QUARANTINED, (number,))
    return True


def close(connection: sqlite3.Connection, id: str) -> bool:
    """See `Store.close_registration`."""
    found = connection.execute(CLOSABLE, (id,)).fetchone()
    if found is None:
        return False
    number, echoed = found
    _end(connection, number)
    return bool(echoed)


def find(
    connection: sqlite3.Connection, ids: Iterable[str], *, now: float, sealer: Sealer
) -> list[Registration | StoreUnavailableError | None]:
    """See `Store.find_registration`; equal ids share one lookup, and open their secrets once."""
    found: dict[str, Registration | None] = {}
    outcomes: list[Registration | StoreUnavailableError | None] = []
    for id in ids:
        try:
            if id not in found:
                found[id] = _find(connection, id, now=now, sealer=sealer)
            outcomes.append(found[id])
        except StoreUnavailableError as error:
            outcomes.append(error)
    return outcomes


def _find(connection: sqlite3.Connection, id: str, *, now: float, sealer: Sealer) -> Registration | None:
    row = connection.execute(FIND, (id,)).fetchone()
    return None if row is None else as_found(_registration(connection, row, sealer.open), now=now)


def overdue(connection: sqlite3.Connection, *, now: float, sealer: Sealer) -> list[Registration]:
    """Return the registrations for `Store.expire_registrations` to close, without candidates that cannot be opened."""
    failed: dict[str | None, str] = {}
    rows = connection.execute(OVERDUE, (now,)).fetchall()
    found = [_registration(connection, row, lambda secret: open_or_note(secret, sealer, failed)) for row in rows]
    for problem in failed.values():
        _log.warning("cannot open candidates of expired registrations; closing these anyway: %.300r", problem)
    return found


def open_or_note(secret: StoredSecret, sealer: Sealer, failed: dict[str | None, str]) -> Secret | None:
    """Open a secret. If that fails, note the error under its key; return ``None`` for every secret of that key."""
    if secret.key_id not in failed:  # opening more secrets of a failed key would only take time
        try:
            return sealer.open(secret)
        except StoreUnavailableError as error:
            failed[secret.key_id] = str(error)
    return None


def unreadable(connection: sqlite3.Connection, *, now: float, sealer: Sealer) -> list[str]:
    """Open one secret of each key in use; return the text of the error for each key that fails."""
    rows = [*connection.execute(OLDEST_CANDIDATES, (now,)), *connection.execute(OLDEST_SECRETS)]
    failed: dict[str | None, str] = {}
    for key_id, secret in {key_id: secret for key_id, secret, _ in rows}.items():
        open_or_note(StoredSecret(secret, key_id), sealer, failed)
    return list(failed.values())


def end_overdue(connection: sqlite3.Connection, found: Iterable[Registration], *, now: float) -> list[Registration]:
    """Close the registrations that `overdue` found; return those that were still pending."""
    ended = []
    for registration in found:
        still = connection.execute(STILL_OVERDUE, (registration.id, now)).fetchone()
        if still is not None:
            _end(connection, *still)
            ended.append(registration)
    return ended


def heartbeat(connection: sqlite3.Connection, id: str, *, now: float) -> None:
    """See `Store.record_heartbeat`."""
    connection.execute(BEAT, (now, id, now))


@frozen
class StaleSecret:
    """A secret in the database that is not sealed with the current key."""

    table: str
    number: int
    secret: StoredSecret = field(repr=False)


def stale(connection: sqlite3.Connection, *, key_id: str | None) -> list[StaleSecret]:
    """Return all secrets that are not sealed with this key."""
    return [
        StaleSecret(table, number, StoredSecret(*secret))
        for table in ("registrations", "candidates")
        for number, *secret in connection.execute(STALE.format(table=table), (key_id,)).fetchall()
    ]


def replace_secret(connection: sqlite3.Connection, old: StaleSecret, new: StoredSecret) -> int:
    """Replace a secret, unless it was changed meanwhile; return the number of secrets replaced (0 or 1)."""
    return connection.execute(REPLACE.format(table=old.table), (*new, old.number, *old.secret)).rowcount


def _end(connection: sqlite3.Connection, number: int) -> None:
    connection.execute(CLOSE, (number,))
    connection.execute(DROP_CANDIDATES, (number,))
    connection.execute(DROP_QUARANTINED, (number,))


def _candidate_ids(connection: sqlite3.Connection, number: int) -> set[str]:
    return {name for (name,) in connection.execute(CANDIDATE_IDS, (number,))}


def _registration(
    connection: sqlite3.Connection, row: tuple[Any, ...], open_secret: Callable[[StoredSecret], Secret | None]
) -> Registration:
    number, name, resource, state, deadline, echoed, webhook_gid, last_heartbeat_at, *secret = row
    candidates = connection.execute(CANDIDATES, (number,)).fetchall() if state == "pending" else ()
    opened = [open_secret(StoredSecret(*candidate)) for candidate in candidates]
    return Registration(
        id=name,
        resource=resource,
        state=RegistrationState(state),
        deadline=deadline,
        candidates=tuple(candidate for candidate in opened if candidate is not None),
        echoed=bool(echoed),
        secret=None if secret[0] is None else open_secret(StoredSecret(*secret)),
        webhook_gid=webhook_gid,
        last_heartbeat_at=last_heartbeat_at,
    )
