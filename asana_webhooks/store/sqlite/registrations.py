"""The registrations of the SQLite store."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import ConfigurationError, StoreError, StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import MAX_CANDIDATES, Registration, RegistrationState, candidate_id
from asana_webhooks.store.rules import as_found, check_integer, check_label, check_texts, effective_state, may_open
from asana_webhooks.store.secret_box import StoredSecret
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.store.sqlite.inbox import delete
from asana_webhooks.store.sqlite.maintenance import Database, named

__all__ = ["LIVE", "Registrations"]

_log = logging.getLogger(__name__)

LIVE = "(state = 'confirmed' OR (state = 'pending' AND deadline > :now))"
IN_STATE = {
    RegistrationState.PENDING: f"state <> 'confirmed' AND state = 'pending' AND {LIVE}",
    RegistrationState.CONFIRMED: "state = 'confirmed'",
    RegistrationState.CLOSED: f"NOT {LIVE}",
}
FIND = "SELECT * FROM registrations"
LIVE_BESIDE = f"""
    SELECT id FROM registrations WHERE resource = :resource AND label = :label AND {LIVE}
"""  # noqa: S608 - made of constants
ADD = """
    INSERT INTO registrations (
        id, resource, label, public_url, state, opened_at, deadline, echoed, webhook_gid, replaces
    )
    VALUES (:id, :resource, :label, :public_url, :state, :now, :now + :ttl, :echoed, :webhook_gid, :replaces)
"""
ADD_SEALED = """
    INSERT INTO secrets (registration, id, secret, key_id) SELECT number, ?, ?, ? FROM registrations WHERE id = ?
"""
KNOWN = """
    SELECT resource, label, state, webhook_gid, secrets.id
    FROM registrations LEFT JOIN secrets ON registration = registrations.number WHERE registrations.id = ?
"""
CONFIRM = """
    UPDATE registrations SET state = 'confirmed', webhook_gid = ?,
        last_heartbeat_at = nullif(max(coalesce(last_heartbeat_at, 0), ?), 0)
    WHERE number = ?
"""


class Registrations(Database):
    """The methods of `Store` for registrations."""

    async def open_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", ttl: float, replaces: str | None = None
    ) -> bool:
        """See `Store.open_registration`."""
        values: dict[str, Any] = {"id": id, "resource": resource, "public_url": public_url, "label": check_label(label)}
        values |= {"state": "pending", "echoed": 0, "webhook_gid": None, "replaces": replaces}

        def open_(db: sqlite3.Connection) -> bool:
            if db.execute("SELECT 1 FROM registrations WHERE id = ?", (id,)).fetchone():
                raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
            return _add(db, {**values, "ttl": ttl, "now": self._clock()})

        check_seconds("ttl", ttl)
        return await self._write(open_, adds=0)

    async def adopt_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", webhook_gid: str, secret: Secret
    ) -> bool:
        """See `Store.adopt_registration`."""
        name, sealed = await self._sealed(secret)
        values: dict[str, Any] = {"id": id, "resource": resource, "public_url": public_url, "label": check_label(label)}
        values |= {"state": "confirmed", "echoed": 1, "webhook_gid": webhook_gid, "replaces": None}

        def adopt(db: sqlite3.Connection) -> bool:
            known = db.execute(KNOWN, (id,)).fetchall()
            if known and known != [(resource, label, "confirmed", webhook_gid, name)]:
                raise ConfigurationError(
                    "this endpoint already has a registration: a closed one, or with another webhook, label or secret"
                )
            if not known and not _add(db, {**values, "ttl": 0, "now": self._clock()}):
                return False
            if not known:
                db.execute(ADD_SEALED, (name, *sealed, id))
            return True

        return await self._write(adopt, adds=0)

    async def add_candidate(self, id: str, secret: Secret) -> bool:
        """See `Store.add_candidate`."""
        name, sealed = await self._sealed(secret)

        def add(db: sqlite3.Connection) -> bool:
            number, state, _ = _state(db, id, now=self._clock())
            known = _secret_ids(db, number)
            if state is not RegistrationState.PENDING or (name not in known and len(known) >= MAX_CANDIDATES):
                return False
            if name not in known:
                db.execute(ADD_SEALED, (name, *sealed, id))
                db.execute("UPDATE registrations SET echoed = 1 WHERE number = ?", (number,))
            return True

        return await self._write(add, adds=0)

    async def _sealed(self, secret: Secret) -> tuple[str, StoredSecret]:
        """Return the id of a secret and its sealed form. The reading thread seals, so that writes need not wait."""
        check_texts(secret)
        return candidate_id(secret), await self._read(lambda _: self._sealer.seal(secret))

    async def confirm_registration(
        self, id: str, *, webhook_gid: str, secret: Secret, heartbeat_at: float | None = None
    ) -> bool:
        """See `Store.confirm_registration`. It needs no secret box."""
        check_texts(webhook_gid, secret)
        name = candidate_id(secret)

        def confirm(db: sqlite3.Connection) -> bool:
            now = self._clock()
            number, state, gid = _state(db, id, now=now)
            is_known = name in _secret_ids(db, number)
            if state is not RegistrationState.PENDING or not is_known:
                return state is RegistrationState.CONFIRMED and is_known and gid == webhook_gid
            db.execute(CONFIRM, (webhook_gid, heartbeat_at or 0, number))
            db.execute("DELETE FROM secrets WHERE registration = ? AND id <> ?", (number, name))
            db.execute(
                "UPDATE inbox SET state = 'open' WHERE registration = ? AND state = 'quarantined' AND candidate = ?",
                (number, name),
            )
            others = db.execute("SELECT id FROM inbox WHERE registration = ? AND state = 'quarantined'", (number,))
            delete(db, [id for (id,) in others], now=now)
            return True

        return await self._write(confirm)

    async def close_registration(self, id: str) -> bool:
        """See `Store.close_registration`."""

        def close(db: sqlite3.Connection) -> bool:
            db.execute("UPDATE registrations SET state = 'closed' WHERE id = ?", (id,))
            return (1,) in db.execute("SELECT echoed FROM registrations WHERE id = ?", (id,))

        return await self._write(close)

    async def expire_registrations(self) -> Sequence[Registration]:
        """See `Store.expire_registrations`."""
        overdue = "state <> 'confirmed' AND state = 'pending' AND deadline <= ?"

        def find(db: sqlite3.Connection) -> list[Registration]:
            failed: dict[str | None, str] = {}
            rows = named(db.execute(f"{FIND} WHERE {overdue} ORDER BY number", (self._clock(),)))
            found = [self._opened(db, row, lambda secret: self._sealer.open_or_note(secret, failed)) for row in rows]
            for problem in failed.values():
                _log.warning("cannot open candidates of expired registrations; closing these anyway: %.300r", problem)
            return found

        found = await self._read(find)
        end = f"UPDATE registrations SET state = 'closed' WHERE id = ? AND {overdue}"  # noqa: S608
        return await self._write(lambda db: [one for one in found if db.execute(end, (one.id, self._clock())).rowcount])

    async def find_registration(self, id: str) -> Registration | None:
        """See `Store.find_registration`."""
        self._check_usable()
        return await self._reader.submit_batched(self._find, id, adds=0)

    def _find(self, db: sqlite3.Connection, ids: Sequence[str]) -> Sequence[Registration | StoreError | None]:
        """Find several; equal ids share one lookup, and open their secrets once."""
        now = self._clock()
        found: dict[str, Registration | StoreError | None] = {}
        for id in dict.fromkeys(ids):
            try:
                rows = named(db.execute(f"{FIND} WHERE id = ?", (id,)))
                opened = (self._opened(db, row, self._sealer.open) for row in rows)
                found[id] = next((as_found(one, now=now) for one in opened), None)
            except StoreUnavailableError as error:
                found[id] = error
        return [found[id] for id in ids]

    def _opened(
        self, db: sqlite3.Connection, row: dict[str, Any], open_secret: Callable[[StoredSecret], Secret | None]
    ) -> Registration:
        """Return a registration with its secrets, without those that are opened as ``None``."""
        statement = "SELECT secret, key_id FROM secrets WHERE registration = ? ORDER BY number"
        opened = [open_secret(StoredSecret(*secret)) for secret in db.execute(statement, (row["number"],)).fetchall()]
        secrets = tuple(secret for secret in opened if secret is not None)
        if row["state"] == RegistrationState.PENDING.value:
            return self._registration(row, candidates=secrets)
        return self._registration(row, secret=secrets[0] if secrets else None)

    def _registration(self, row: dict[str, Any], **secrets: Any) -> Registration:
        last = self._recent.get(row.pop("number"), row["last_delivery_at"])
        row |= {"state": RegistrationState(row["state"]), "echoed": bool(row["echoed"]), "last_delivery_at": last}
        return Registration(**row, **secrets)

    async def list_registrations(
        self,
        *,
        label: str | None = None,
        resource: str | None = None,
        webhook_gid: str | None = None,
        state: RegistrationState | None = None,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Registration]:
        """See `Store.list_registrations`."""
        given = {"label": label, "resource": resource, "webhook_gid": webhook_gid}
        conditions = ["id > :after", *(f"{name} = :{name}" for name, value in given.items() if value is not None)]
        conditions += [] if state is None else [IN_STATE[state]]
        statement = f"{FIND} WHERE {' AND '.join(conditions)} ORDER BY id LIMIT :limit"
        values = {**given, "after": after, "limit": max(check_integer("limit", limit), 0)}

        def look(db: sqlite3.Connection) -> list[Registration]:
            now = self._clock()
            found = named(db.execute(statement, {**values, "now": now}))
            return [as_found(self._registration(row), now=now) for row in found]

        return await self._read(look)

    async def record_heartbeat(self, id: str) -> None:
        """See `Store.record_heartbeat`."""
        statement = f"UPDATE registrations SET last_heartbeat_at = :now WHERE id = :id AND {LIVE}"  # noqa: S608
        await self._write(lambda db: db.execute(statement, {"id": id, "now": self._clock()}).rowcount, adds=0)

    async def retire_registration(self, id: str, *, after: float) -> bool:
        """See `Store.retire_registration`."""
        check_seconds("after", after)
        statement = "UPDATE registrations SET retire_after = ? WHERE id = ? AND state = 'confirmed'"
        return await self._write(lambda db: db.execute(statement, (self._clock() + after, id)).rowcount == 1)


def _add(db: sqlite3.Connection, values: Mapping[str, Any]) -> bool:
    live = [id for (id,) in db.execute(LIVE_BESIDE, values)]
    return may_open(live, replaces=values["replaces"]) and db.execute(ADD, values).rowcount == 1


def _state(db: sqlite3.Connection, id: str, *, now: float) -> tuple[int, RegistrationState, str | None]:
    """Return the number, the effective state and the gid of a registration. An unknown one is closed."""
    statement = "SELECT number, state, deadline, webhook_gid FROM registrations WHERE id = ?"
    number, state, deadline, gid = db.execute(statement, (id,)).fetchone() or (0, "closed", 0.0, None)
    return number, effective_state(RegistrationState(state), deadline=deadline, now=now), gid


def _secret_ids(db: sqlite3.Connection, number: int) -> set[str]:
    return {name for (name,) in db.execute("SELECT id FROM secrets WHERE registration = ?", (number,))}
