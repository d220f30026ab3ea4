"""The registrations of the SQLite store: each function does the work of one method inside a transaction."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from attrs import field, frozen

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import MAX_CANDIDATES, MAX_COUNT, Registration, RegistrationState
from asana_webhooks.store.rules import MAX_SILENT, SILENT_AFTER, as_found, effective_state, may_open
from asana_webhooks.store.secret_box import Sealer, StoredSecret
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.store.sqlite.inbox import give_turns

__all__ = [
    "StaleSecret",
    "add_candidate",
    "adopt",
    "close",
    "confirm",
    "counts",
    "end_overdue",
    "find",
    "find_all",
    "open_",
    "open_or_note",
    "overdue",
    "purge",
    "record_heartbeat",
    "replace_secret",
    "retire",
    "save_last_deliveries",
    "stale",
    "unreadable",
]

_log = logging.getLogger(__name__)

COLUMNS = """
    number, id, resource, label, public_url, state, opened_at, deadline, echoed, webhook_gid, last_heartbeat_at,
    last_delivery_at, replaces, retire_after, secret, key_id
"""
SELECT = f"SELECT {COLUMNS} FROM registrations"  # noqa: S608 - made of constants, as the ones below
LIVE = "(state = 'confirmed' OR (state = 'pending' AND deadline > :now))"
LIVE_BESIDE = f"""
    SELECT id FROM registrations
    WHERE resource = :resource AND label = :label AND state <> 'closed' AND {LIVE}
"""  # noqa: S608
KNOWN = "SELECT resource, label, state, webhook_gid, candidate FROM registrations WHERE id = ?"
ADD = """
    INSERT INTO registrations (id, resource, label, public_url, state, opened_at, deadline, replaces)
    VALUES (:id, :resource, :label, :public_url, 'pending', :now, :deadline, :replaces)
"""
ADOPT = """
    INSERT INTO registrations (id, resource, label, public_url, state, opened_at, deadline, echoed, webhook_gid,
        candidate, secret, key_id)
    VALUES (:id, :resource, :label, :public_url, 'confirmed', :now, :now, 1, :webhook_gid, :candidate, :secret, :key_id)
"""
STATE = "SELECT number, state, deadline, webhook_gid, candidate, echoed FROM registrations WHERE id = ?"
OVERDUE = f"{SELECT} WHERE state = 'pending' AND deadline <= ? ORDER BY number"
STILL_OVERDUE = "SELECT number FROM registrations WHERE id = ? AND state = 'pending' AND deadline <= ?"
CANDIDATE_IDS = "SELECT id FROM candidates WHERE registration = ?"
CANDIDATES = "SELECT secret, key_id FROM candidates WHERE registration = ? ORDER BY number"
ADD_CANDIDATE = "INSERT INTO candidates (registration, id, secret, key_id) VALUES (?, ?, ?, ?)"
ECHO = "UPDATE registrations SET echoed = 1 WHERE number = ?"
# The secret is copied as sealed, so confirming needs no secret box.
CONFIRM = """
    UPDATE registrations SET state = 'confirmed', webhook_gid = ?, candidate = ?, (secret, key_id) = (
        SELECT candidates.secret, candidates.key_id FROM candidates
        WHERE candidates.registration = registrations.number AND candidates.id = ?
    ), last_heartbeat_at = nullif(max(coalesce(last_heartbeat_at, 0), ?), 0)
    WHERE number = ?
"""
CLOSE = "UPDATE registrations SET state = 'closed', secret = NULL, key_id = NULL, candidate = NULL WHERE number = ?"
DROP_CANDIDATES = "DELETE FROM candidates WHERE registration = ?"
RELEASE = "UPDATE inbox SET state = 'open' WHERE registration = ? AND state = 'quarantined' AND candidate = ?"
DROP_BODIES = """
    DELETE FROM bodies WHERE delivery IN (SELECT id FROM inbox WHERE registration = ? AND state = 'quarantined')
"""
DROP_QUARANTINED = "DELETE FROM inbox WHERE registration = ? AND state = 'quarantined'"
BEAT = f"UPDATE registrations SET last_heartbeat_at = :now WHERE id = :id AND {LIVE}"  # noqa: S608
RETIRE = "UPDATE registrations SET retire_after = ? WHERE id = ? AND state = 'confirmed'"
SAVE_LAST_DELIVERY = """
    UPDATE registrations SET last_delivery_at = max(coalesce(last_delivery_at, 0), ?) WHERE number = ?
"""
COUNT_CONFIRMED = f"""
    SELECT count(*) FROM (SELECT 1 FROM registrations WHERE state = 'confirmed' LIMIT {MAX_COUNT})
"""  # noqa: S608
SILENT = f"""
    SELECT webhook_gid, max(max(opened_at, coalesce(last_heartbeat_at, 0)), coalesce(last_delivery_at, 0)) AS last
    FROM (
        SELECT * FROM registrations WHERE state = 'confirmed' AND max(opened_at, coalesce(last_heartbeat_at, 0)) < :before
        ORDER BY max(opened_at, coalesce(last_heartbeat_at, 0)) LIMIT {MAX_COUNT // 10}
    )
    WHERE last < :before ORDER BY last LIMIT {MAX_SILENT}
"""  # noqa: S608
# The oldest secret of the next key: it fails even if newer ones are sealed with another key of the same id.
OLDEST_OF_KEY = """
    SELECT key_id, secret FROM registrations WHERE key_id IS NOT NULL AND key_id > ? ORDER BY key_id, number LIMIT 1
"""
OLDEST_CANDIDATES = """
    SELECT candidates.key_id, candidates.secret, min(candidates.number)
    FROM candidates JOIN registrations ON registrations.number = candidates.registration
    WHERE candidates.key_id IS NOT NULL AND state = 'pending' AND deadline > ? GROUP BY candidates.key_id
"""
STALE = "SELECT number, secret, key_id FROM {table} WHERE secret IS NOT NULL AND key_id IS NOT ?"
REPLACE = "UPDATE {table} SET secret = ?, key_id = ? WHERE number = ? AND secret = ? AND key_id IS ?"
PURGE = """
    DELETE FROM registrations WHERE number IN (
        SELECT number FROM registrations WHERE state = 'closed' AND deadline < ?
            AND NOT EXISTS (SELECT 1 FROM inbox WHERE inbox.registration = registrations.number)
        LIMIT 500
    )
"""


def open_(connection: sqlite3.Connection, values: Mapping[str, Any]) -> bool:
    """See `Store.open_registration`; *values*: its arguments, *now* and *deadline*."""
    if connection.execute(KNOWN, (values["id"],)).fetchone():
        raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
    return _add(connection, ADD, values, replaces=values["replaces"])


def adopt(connection: sqlite3.Connection, values: Mapping[str, Any]) -> bool:
    """See `Store.adopt_registration`; *values*: its arguments with the sealed secret, *candidate* and *now*."""
    known = connection.execute(KNOWN, (values["id"],)).fetchone()
    if known is None:
        return _add(connection, ADOPT, values, replaces=None)
    if known != (values["resource"], values["label"], "confirmed", values["webhook_gid"], values["candidate"]):
        raise ConfigurationError("this endpoint already has a registration, and not for this webhook")
    return True


def _add(connection: sqlite3.Connection, statement: str, values: Mapping[str, Any], *, replaces: str | None) -> bool:
    live = [id for (id,) in connection.execute(LIVE_BESIDE, values)]
    if not may_open(live, replaces=replaces):
        return False
    connection.execute(statement, values)
    return True


def add_candidate(connection: sqlite3.Connection, id: str, secret: StoredSecret, *, candidate: str, now: float) -> bool:
    """See `Store.add_candidate`; *candidate* is the secret's `candidate_id`."""
    number, state, *_ = _state(connection, id, now=now)
    if state is not RegistrationState.PENDING:
        return False
    known = _candidate_ids(connection, number)
    if candidate in known:
        return True
    if len(known) >= MAX_CANDIDATES:
        return False
    connection.execute(ADD_CANDIDATE, (number, candidate, *secret))
    connection.execute(ECHO, (number,))
    return True


def confirm(
    connection: sqlite3.Connection, id: str, *, webhook_gid: str, candidate: str, heartbeat_at: float | None, now: float
) -> bool:
    """See `Store.confirm_registration`; *candidate* is the secret's `candidate_id`."""
    number, state, *confirmed_with, _ = _state(connection, id, now=now)
    if state is RegistrationState.CONFIRMED:
        return bool([webhook_gid, candidate] == confirmed_with)
    if state is RegistrationState.CLOSED or candidate not in _candidate_ids(connection, number):
        return False
    connection.execute(CONFIRM, (webhook_gid, candidate, candidate, heartbeat_at or 0, number))
    connection.execute(RELEASE, (number, candidate))
    _drop_pending(connection, number)
    give_turns(connection, [number], now=now)
    return True


def close(connection: sqlite3.Connection, id: str, *, now: float) -> bool:
    """See `Store.close_registration`."""
    number, *_, echoed = _state(connection, id, now=now)
    _end(connection, number)
    return bool(echoed)


def _state(
    connection: sqlite3.Connection, id: str, *, now: float
) -> tuple[int, RegistrationState, str | None, str | None, bool]:
    """Return number, effective state, gid, confirmed candidate, and `Registration.echoed`. An unknown one is closed."""
    found = connection.execute(STATE, (id,)).fetchone()
    if found is None:
        return 0, RegistrationState.CLOSED, None, None, False
    number, state, deadline, *others = found
    return number, effective_state(RegistrationState(state), deadline=deadline, now=now), *others


def _end(connection: sqlite3.Connection, number: int) -> None:
    connection.execute(CLOSE, (number,))
    _drop_pending(connection, number)


def _drop_pending(connection: sqlite3.Connection, number: int) -> None:
    """Delete the candidates and the quarantined deliveries of a registration that is no longer pending."""
    for statement in (DROP_CANDIDATES, DROP_BODIES, DROP_QUARANTINED):
        connection.execute(statement, (number,))


def _candidate_ids(connection: sqlite3.Connection, number: int) -> set[str]:
    return {name for (name,) in connection.execute(CANDIDATE_IDS, (number,))}


def find(
    connection: sqlite3.Connection, ids: Iterable[str], *, now: float, sealer: Sealer, recent: Mapping[int, float]
) -> list[Registration | StoreUnavailableError | None]:
    """See `Store.find_registration`; equal ids share one lookup, and open their secrets once.

    *recent*: when the latest deliveries of registrations were stored, by number, if that is not saved yet.
    """
    found: dict[str, Registration | None] = {}
    outcomes: list[Registration | StoreUnavailableError | None] = []
    for id in ids:
        try:
            if id not in found:
                row = connection.execute(f"{SELECT} WHERE id = ?", (id,)).fetchone()
                found[id] = None if row is None else as_found(_opened(connection, row, recent, sealer.open), now=now)
            outcomes.append(found[id])
        except StoreUnavailableError as error:
            outcomes.append(error)
    return outcomes


def find_all(
    connection: sqlite3.Connection,
    wanted: Mapping[str, str],
    *,
    state: RegistrationState | None,
    after: str,
    limit: int,
    now: float,
    recent: Mapping[int, float],
) -> list[Registration]:
    """See `Store.list_registrations`; *wanted*: values of columns."""
    conditions = ["id > :after", *(f"{column} = :{column}" for column in wanted)]
    if state is not None:
        is_in_state = f"(state = :state AND {LIVE})"
        conditions.append(f"NOT {LIVE}" if state is RegistrationState.CLOSED else is_in_state)
    statement = f"{SELECT} WHERE {' AND '.join(conditions)} ORDER BY id LIMIT :limit"
    values = {**wanted, "state": state and state.value, "after": after, "limit": limit, "now": now}
    return [as_found(_registration(row, recent), now=now) for row in connection.execute(statement, values)]


def _opened(
    connection: sqlite3.Connection,
    row: tuple[Any, ...],
    recent: Mapping[int, float],
    open_secret: Callable[[StoredSecret], Secret | None],
) -> Registration:
    """Return a registration with its secret and candidates, without those that are opened as ``None``."""
    *_, secret, key_id = row
    number, is_pending = row[0], row[5] == RegistrationState.PENDING.value
    candidates = connection.execute(CANDIDATES, (number,)).fetchall() if is_pending else ()
    opened = [open_secret(StoredSecret(*candidate)) for candidate in candidates]
    return _registration(
        row,
        recent,
        secret=None if secret is None else open_secret(StoredSecret(secret, key_id)),
        candidates=tuple(candidate for candidate in opened if candidate is not None),
    )


def _registration(row: tuple[Any, ...], recent: Mapping[int, float], **secrets: Any) -> Registration:
    names = [name.strip() for name in COLUMNS.split(",")]
    values = dict(zip(names[1:-2], row[1:-2], strict=True))
    last = max(values.pop("last_delivery_at") or 0.0, recent.get(row[0], 0.0)) or None
    values |= {"state": RegistrationState(values["state"]), "echoed": bool(values["echoed"]), "last_delivery_at": last}
    return Registration(**values, **secrets)


def overdue(
    connection: sqlite3.Connection, *, now: float, sealer: Sealer, recent: Mapping[int, float]
) -> list[Registration]:
    """Return the registrations for `Store.expire_registrations` to close, without candidates that cannot be opened."""
    failed: dict[str | None, str] = {}
    rows = connection.execute(OVERDUE, (now,)).fetchall()
    found = [_opened(connection, row, recent, lambda secret: open_or_note(secret, sealer, failed)) for row in rows]
    for problem in failed.values():
        _log.warning("cannot open candidates of expired registrations; closing these anyway: %.300r", problem)
    return found


def end_overdue(connection: sqlite3.Connection, found: Iterable[Registration], *, now: float) -> list[Registration]:
    """Close the registrations that `overdue` found; return those that were still pending."""
    ended = []
    for registration in found:
        still = connection.execute(STILL_OVERDUE, (registration.id, now)).fetchone()
        if still is not None:
            _end(connection, *still)
            ended.append(registration)
    return ended


def record_heartbeat(connection: sqlite3.Connection, id: str, *, now: float) -> None:
    """See `Store.record_heartbeat`."""
    connection.execute(BEAT, {"id": id, "now": now})


def retire(connection: sqlite3.Connection, id: str, *, at: float) -> bool:
    """See `Store.retire_registration`."""
    return connection.execute(RETIRE, (at, id)).rowcount == 1


def save_last_deliveries(connection: sqlite3.Connection, recent: dict[int, float]) -> bool:
    """Save some of the *recent* deliveries, and remove them there; return whether there are more."""
    numbers = sorted(recent)[:500]  # neighbours share pages
    connection.executemany(SAVE_LAST_DELIVERY, [(recent.pop(number), number) for number in numbers])
    return bool(recent)


def counts(connection: sqlite3.Connection, *, now: float) -> dict[str, Any]:
    """Return *webhooks* and *silent* of `StoreHealth`."""
    (webhooks,) = connection.execute(COUNT_CONFIRMED).fetchone()
    silent = connection.execute(SILENT, {"before": now - SILENT_AFTER})
    return {"webhooks": webhooks, "silent": tuple(gid for gid, _ in silent)}


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
    secrets = {key_id: secret for key_id, secret, _ in connection.execute(OLDEST_CANDIDATES, (now,))}
    secrets |= dict(_secret_of_each_key(connection))
    failed: dict[str | None, str] = {}
    for key_id, secret in secrets.items():
        open_or_note(StoredSecret(secret, key_id), sealer, failed)
    return list(failed.values())


def _secret_of_each_key(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    key_id = ""
    while row := connection.execute(OLDEST_OF_KEY, (key_id,)).fetchone():
        key_id, _ = row
        yield row


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


def purge(connection: sqlite3.Connection, *, before: float) -> bool:
    """Forget some old closed registrations without deliveries; return whether there may be more."""
    return connection.execute(PURGE, (before,)).rowcount > 0
