"""The registrations of the PostgreSQL store."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import ConfigurationError, StoreError, StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import MAX_CANDIDATES, Registration, RegistrationState, candidate_id
from asana_webhooks.store.postgres.connections import NOW, Batch, Connection, Database, check_texts
from asana_webhooks.store.rules import as_found, check_integer, check_label, effective_state, may_open
from asana_webhooks.store.secret_box import StoredSecret

__all__ = ["LIVE", "Registrations", "from_row", "to_row"]

_log = logging.getLogger(__name__)

LIVE = f"(state = 'confirmed' OR (state = 'pending' AND deadline > {NOW}))"
IN_STATE = {
    RegistrationState.PENDING: f"state <> 'confirmed' AND state = 'pending' AND {LIVE}",
    RegistrationState.CONFIRMED: "state = 'confirmed'",
    RegistrationState.CLOSED: f"NOT {LIVE}",
}
FIND = f"""
    SELECT number, id, resource, label, public_url, state, opened_at, deadline, echoed, webhook_gid, last_heartbeat_at,
        last_delivery_at, replaces, retire_after, {NOW} AS now,
        ARRAY(SELECT secret FROM @secrets WHERE registration = registrations.number ORDER BY number) AS secrets,
        ARRAY(SELECT key_id FROM @secrets WHERE registration = registrations.number ORDER BY number) AS keys
    FROM @registrations AS registrations
"""  # noqa: S608 - made of constants, as the ones below
# No index can tell that two registrations are not live at the same time, because time alone ends one. Whoever makes one
# live locks its resource and label first, and looks afterwards.
LOCK_PAIR = "SELECT pg_advisory_xact_lock(hashtextextended($1, 41574849))"
LIVE_BESIDE = f"SELECT id FROM @registrations WHERE resource = $2 AND label = $3 AND {LIVE}"  # noqa: S608
ADD = f"""
    INSERT INTO @registrations (
        id, resource, label, public_url, state, opened_at, deadline, echoed, webhook_gid, replaces
    )
    VALUES ($2, $3, $4, $5, $6, {NOW}, {NOW} + $7, $8, $9, $10)
    ON CONFLICT DO NOTHING
"""  # noqa: S608
ADD_SEALED = """
    INSERT INTO @secrets (registration, id, secret, key_id)
    SELECT number, $2, $3, $4 FROM @registrations WHERE id = $1
"""
KNOWN = """
    SELECT resource, label, state, webhook_gid, secrets.id AS secret
    FROM @registrations AS registrations LEFT JOIN @secrets AS secrets ON registration = registrations.number
    WHERE registrations.id = $1
"""
LOCK = f"SELECT number, state, deadline, webhook_gid, {NOW} AS now FROM @registrations WHERE id = $2 FOR NO KEY UPDATE"  # noqa: S608
CONFIRM = """
    UPDATE @registrations SET state = 'confirmed', webhook_gid = $2,
        last_heartbeat_at = nullif(greatest(coalesce(last_heartbeat_at, 0), $3), 0)
    WHERE number = $1
"""
CLOSE = f"""
    UPDATE @registrations SET state = 'closed', closed_at = CASE WHEN state = 'confirmed' THEN {NOW} ELSE closed_at END
    WHERE id = $2 RETURNING number, echoed
"""  # noqa: S608
FORGET = (
    "DELETE FROM @secrets WHERE registration = ANY($1)",
    "DELETE FROM @inbox WHERE registration = ANY($1) AND state <> 'open' AND state = 'quarantined'",
)
# A handshake that came within the deadline may have locked one. What it adds is visible to the next statement.
EXPIRE = f"""
    UPDATE @registrations SET state = 'closed' WHERE number = ANY(ARRAY(
        SELECT number FROM @registrations WHERE state <> 'confirmed' AND state = 'pending' AND deadline <= {NOW}
        ORDER BY number FOR NO KEY UPDATE
    )) RETURNING number
"""  # noqa: S608


class Registrations(Database):
    """The methods of `Store` for registrations."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._finds: Batch[str, Registration | None] = Batch(self._find, self._spawn)

    async def open_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", ttl: float, replaces: str | None = None
    ) -> bool:
        """See `Store.open_registration`."""
        check_texts(id, resource, public_url, check_label(label), replaces)
        check_seconds("ttl", ttl)

        async def open_(db: Connection) -> bool:
            await _lock_pair(db, resource, label)
            if await db.first("SELECT 1 FROM @registrations WHERE id = $1", id):
                raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
            rest = "pending", ttl, False, None, replaces
            return await self._add(db, id, resource, label, public_url, *rest)

        return await self._do(open_, transaction=True, limited=True)

    async def adopt_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", webhook_gid: str, secret: Secret
    ) -> bool:
        """See `Store.adopt_registration`."""
        check_texts(id, resource, public_url, check_label(label), webhook_gid, secret)
        name, sealed = await self._sealed(secret)

        async def adopt(db: Connection) -> bool:
            await _lock_pair(db, resource, label)
            known = [tuple(row) for row in await db.fetch(KNOWN, id)]
            if known and known != [(resource, label, "confirmed", webhook_gid, name)]:
                raise ConfigurationError(
                    "this endpoint already has a registration: a closed one, or with another webhook, label or secret"
                )
            if known:
                return True
            rest = "confirmed", 0.0, True, webhook_gid, None
            added = await self._add(db, id, resource, label, public_url, *rest)
            return added and await db.run(ADD_SEALED, id, name, *sealed) == 1

        return await self._do(adopt, transaction=True, limited=True)

    async def _add(self, db: Connection, id: str, resource: str, label: str, public_url: str, *rest: Any) -> bool:
        live = [row["id"] for row in await db.fetch(LIVE_BESIDE, self._now(), resource, label)]
        if not may_open(live, replaces=rest[-1]):
            return False
        if not await db.run(ADD, self._now(), id, resource, label, public_url, *rest):
            raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
        return True

    async def add_candidate(self, id: str, secret: Secret) -> bool:
        """See `Store.add_candidate`."""
        check_texts(id, secret)
        name, sealed = await self._sealed(secret)

        async def add(db: Connection) -> bool:
            number, state, _ = await self._locked(db, id)
            known = await _secret_ids(db, number)
            if state is not RegistrationState.PENDING or (name not in known and len(known) >= MAX_CANDIDATES):
                return False
            if name not in known:
                await db.run(ADD_SEALED, id, name, *sealed)
                await db.run("UPDATE @registrations SET echoed = true WHERE number = $1", number)
            return True

        return await self._do(add, transaction=True, limited=True)

    async def _sealed(self, secret: Secret) -> tuple[str, tuple[bytes, str | None]]:
        """Return the id of a secret and its sealed form, before a transaction begins."""
        self._check_usable()
        return candidate_id(secret), to_row(await self._with_box(lambda: self._sealer.seal(secret)))

    async def confirm_registration(
        self, id: str, *, webhook_gid: str, secret: Secret, heartbeat_at: float | None = None
    ) -> bool:
        """See `Store.confirm_registration`. It needs no secret box."""
        check_texts(id, webhook_gid, secret)
        name = candidate_id(secret)

        async def confirm(db: Connection) -> bool:
            pair = await db.first("SELECT resource, label FROM @registrations WHERE id = $1", id)
            if pair is not None:
                await _lock_pair(db, *pair)
            number, state, gid = await self._locked(db, id)
            is_known = name in await _secret_ids(db, number)
            if state is not RegistrationState.PENDING or not is_known:
                return state is RegistrationState.CONFIRMED and is_known and gid == webhook_gid
            await db.run(CONFIRM, number, webhook_gid, heartbeat_at or 0)
            await db.run("DELETE FROM @secrets WHERE registration = $1 AND id <> $2", number, name)
            quarantined = "registration = $1 AND state <> 'open' AND state = 'quarantined'"
            await db.run(f"UPDATE @inbox SET state = 'open' WHERE {quarantined} AND candidate = $2", number, name)  # noqa: S608
            await db.run(f"DELETE FROM @inbox WHERE {quarantined}", number)  # noqa: S608
            return True

        return await self._do(confirm, transaction=True)

    async def _locked(self, db: Connection, id: str) -> tuple[int, RegistrationState, str | None]:
        """Lock a registration; return its number, its effective state and its gid. An unknown one is closed."""
        row = await db.first(LOCK, self._now(), id)
        if row is None:
            return 0, RegistrationState.CLOSED, None
        state = effective_state(RegistrationState(row["state"]), deadline=row["deadline"], now=row["now"])
        return row["number"], state, row["webhook_gid"]

    async def close_registration(self, id: str) -> bool:
        """See `Store.close_registration`."""
        check_texts(id)

        async def close(db: Connection) -> bool:
            row = await db.first(CLOSE, self._now(), id)
            if row is not None:
                await _forget(db, [row["number"]])
            return row is not None and bool(row["echoed"])

        return await self._do(close, transaction=True)

    async def expire_registrations(self) -> Sequence[Registration]:
        """See `Store.expire_registrations`."""

        async def close(db: Connection) -> Sequence[Any]:
            numbers = [row["number"] for row in await db.fetch(EXPIRE, self._now())]
            rows = await db.fetch(f"{FIND} WHERE number = ANY($2) ORDER BY number", self._now(), numbers)
            await _forget(db, numbers)
            return rows

        rows = await self._do(close, transaction=True, limited=True)
        failed: dict[str | None, str] = {}

        def open_all() -> list[Registration]:
            before = [{**row, "state": "pending"} for row in rows]
            return [self._with_secrets(row, lambda one: self._sealer.open_or_note(one, failed)) for row in before]

        found = await self._with_box(open_all) if rows else ()
        for problem in failed.values():
            _log.warning("cannot open candidates of expired registrations; these are closed anyway: %.300r", problem)
        return found

    async def find_registration(self, id: str) -> Registration | None:
        """See `Store.find_registration`. All that wait share a statement."""
        self._check_usable()
        check_texts(id)
        self._check_room(0)
        self._count()
        return await self._finds.submit(id)

    async def _find(self, ids: Sequence[str]) -> Sequence[Registration | StoreError | None]:
        with self._uncounting(len(ids)):
            return await self._find_all(ids)

    async def _find_all(self, ids: Sequence[str]) -> Sequence[Registration | StoreError | None]:
        """Find several; equal ids share one lookup, and open their secrets once."""
        wanted = list(set(ids))
        rows = await self._run(lambda db: db.fetch(f"{FIND} WHERE id = ANY($2)", self._now(), wanted))

        def open_all() -> dict[str, Registration | StoreError]:
            found: dict[str, Registration | StoreError] = {}
            for row in rows:
                try:
                    found[row["id"]] = as_found(self._with_secrets(row, self._sealer.open), now=row["now"])
                except StoreUnavailableError as error:
                    found[row["id"]] = error
            return found

        found = await self._with_box(open_all)
        return [found.get(id) for id in ids]

    def _with_secrets(self, row: Any, open_secret: Callable[[StoredSecret], Secret | None]) -> Registration:
        """Return a registration with its secrets, without those that are opened as ``None``."""
        opened = [open_secret(from_row(*one)) for one in zip(row["secrets"], row["keys"], strict=True)]
        secrets = tuple(secret for secret in opened if secret is not None)
        if row["state"] == RegistrationState.PENDING.value:
            return _registration(row, candidates=secrets)
        return _registration(row, secret=secrets[0] if secrets else None)

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
        check_texts(label, resource, webhook_gid, after)
        given = {"label": label, "resource": resource, "webhook_gid": webhook_gid}
        values: list[Any] = [after, max(check_integer("limit", limit), 0)]
        conditions = ["id > $2", *([] if state is None else [IN_STATE[state]])]
        for name, value in given.items():
            if value is not None:
                values.append(value)
                conditions.append(f"{name} = ${len(values) + 1}")
        statement = f"{FIND} WHERE {' AND '.join(conditions)} ORDER BY id LIMIT $3"
        rows = await self._fetch(statement, self._now(), *values, limited=True)
        return [as_found(_registration(row), now=row["now"]) for row in rows]

    async def record_heartbeat(self, id: str) -> None:
        """See `Store.record_heartbeat`."""
        check_texts(id)
        statement = f"UPDATE @registrations SET last_heartbeat_at = {NOW} WHERE id = $2 AND {LIVE}"  # noqa: S608
        await self._change(statement, self._now(), id, limited=True)

    async def retire_registration(self, id: str, *, after: float) -> bool:
        """See `Store.retire_registration`."""
        check_texts(id)
        check_seconds("after", after)
        statement = f"UPDATE @registrations SET retire_after = {NOW} + $3 WHERE id = $2 AND state = 'confirmed'"  # noqa: S608
        return await self._change(statement, self._now(), id, after) == 1


def _registration(row: Any, **secrets: Any) -> Registration:
    values = {name: value for name, value in row.items() if name not in {"number", "now", "secrets", "keys"}}
    return Registration(**values | {"state": RegistrationState(row["state"])}, **secrets)


async def _lock_pair(db: Connection, resource: str, label: str) -> None:
    await db.fetch(LOCK_PAIR, f"{len(resource)} {resource} {label}")


async def _secret_ids(db: Connection, number: int) -> set[str]:
    return {row["id"] for row in await db.fetch("SELECT id FROM @secrets WHERE registration = $1", number)}


async def _forget(db: Connection, numbers: Sequence[int]) -> None:
    """Delete the secrets and the quarantine of registrations that this transaction has closed."""
    for statement in FORGET:
        await db.run(statement, numbers)


def to_row(secret: StoredSecret) -> tuple[bytes, str | None]:
    """Return a secret as the columns ``secret`` and ``key_id``."""
    content = secret.content
    return content.encode() if isinstance(content, str) else content, secret.key_id


def from_row(content: bytes, key_id: str | None) -> StoredSecret:
    """Return a secret from the columns ``secret`` and ``key_id``."""
    return StoredSecret(content.decode() if key_id is None else content, key_id)
