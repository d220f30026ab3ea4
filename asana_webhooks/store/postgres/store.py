"""`PostgresStore`: opening and closing, health, maintenance. Its other methods are in `registrations` and `inbox`."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Self

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import ConfigurationError, StoreError
from asana_webhooks.store.base import MAX_COUNT, DeliveryState, StoreHealth
from asana_webhooks.store.postgres import inbox
from asana_webhooks.store.postgres.connections import NOW, Connection
from asana_webhooks.store.postgres.inbox import Inbox
from asana_webhooks.store.postgres.registrations import LIVE, Registrations, from_row, to_row
from asana_webhooks.store.postgres.schema import check_settings
from asana_webhooks.store.rules import MAX_SILENT, SILENT_AFTER
from asana_webhooks.store.secret_box import StoredSecret

__all__ = ["PostgresStore"]

_log = logging.getLogger(__name__)

PROBE = f"""
    INSERT INTO @probe (one, at) VALUES (1, {NOW}) ON CONFLICT (one) DO UPDATE SET at = excluded.at
"""  # noqa: S608 - made of constants, as the ones below
COUNTED = {
    "ready": f"@inbox WHERE {inbox.WAITING}",
    "delayed": "@inbox WHERE due_at IS NOT NULL AND fence = 0",
    "expired": f"@inbox AS inbox WHERE due_at IS NOT NULL AND fence <> 0 AND NOT {inbox.RUNS}",
    **{
        state.value: f"@inbox AS inbox WHERE {inbox.IN_STATE[state]}"
        for state in (DeliveryState.LEASED, DeliveryState.QUARANTINED, DeliveryState.DEAD)
    },
    "webhooks": "@registrations WHERE state = 'confirmed'",
}
COUNTS = ", ".join(
    f"(SELECT count(*) FROM (SELECT FROM {rows} LIMIT {MAX_COUNT}) AS counted) AS {name}"  # noqa: S608
    for name, rows in COUNTED.items()
)
LOOK = f"""
    SELECT {NOW} AS now, {COUNTS}, least(
        (SELECT received_at FROM @inbox WHERE {inbox.WAITING} ORDER BY id LIMIT 1),
        (SELECT min(received_at) FROM (
            SELECT received_at FROM @inbox WHERE due_at IS NOT NULL LIMIT {MAX_COUNT}
        ) AS held)
    ) AS first
"""  # noqa: S608
SIGN = "greatest(opened_at, coalesce(last_heartbeat_at, 0))"
SILENT = f"""
    SELECT webhook_gid, greatest(sign, coalesce(last_delivery_at, 0)) AS at FROM (
        SELECT webhook_gid, last_delivery_at, {SIGN} AS sign FROM @registrations
        WHERE state = 'confirmed' AND {SIGN} < $1 ORDER BY {SIGN} LIMIT {10 * MAX_SILENT}
    ) AS quiet
    WHERE coalesce(last_delivery_at, 0) < $1 ORDER BY at LIMIT {MAX_SILENT}
"""  # noqa: S608
OLD_TRANSACTION: Final = 600.0
"""Seconds after which an open transaction is a problem: vacuum cannot remove what was deleted since it began."""
OLDEST_TRANSACTION = """
    SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age FROM pg_stat_activity
    WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        AND xact_start < clock_timestamp() - $1 * interval '1 second'
        AND pid <> pg_backend_pid() AND datname = current_database()
    ORDER BY xact_start LIMIT 1
"""
# The oldest secret of the next key: it fails even if newer ones are sealed with another key of the same id.
OLDEST_OF_KEY = f"""
    SELECT secret, key_id FROM @secrets AS secrets JOIN @registrations AS registrations
        ON registrations.number = registration
    WHERE key_id IS NOT NULL AND key_id > $2 AND {LIVE} ORDER BY key_id, secrets.number LIMIT 1
"""  # noqa: S608
STALE = "SELECT number, secret, key_id FROM @secrets WHERE key_id IS DISTINCT FROM $1 ORDER BY number"
RESEAL = """
    UPDATE @secrets SET secret = $2, key_id = $3 WHERE number = $1 AND secret = $4 AND key_id IS NOT DISTINCT FROM $5
"""

PURGE_SEEN = """
    WITH old AS MATERIALIZED (
        SELECT event_at, signature, registration, received_at FROM @seen
        WHERE (event_at, signature, registration) > ($1, $2, $3) AND event_at < $4
        ORDER BY event_at, signature, registration LIMIT $6
    ), gone AS (
        DELETE FROM @seen AS seen USING old
        WHERE (seen.event_at, seen.signature, seen.registration) = (old.event_at, old.signature, old.registration)
            AND seen.received_at < $5
        RETURNING 1
    )
    SELECT event_at, signature, registration, (SELECT count(*) FROM gone) AS gone FROM old
    ORDER BY event_at DESC, signature DESC, registration DESC LIMIT 1
"""
PURGE_DEAD = """
    DELETE FROM @inbox WHERE id IN (
        SELECT id FROM @inbox WHERE state <> 'open' AND state = 'dead' AND received_at < $1
        ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
    )
"""
# A minute after closing, no put is left that saw the registration confirmed.
PURGE_REGISTRATIONS = f"""
    DELETE FROM @registrations WHERE number IN (
        SELECT number FROM @registrations AS registrations
        WHERE state <> 'confirmed' AND state = 'closed' AND deadline < $2 AND coalesce(closed_at, 0) <= {NOW} - 60
            AND NOT EXISTS (SELECT FROM @inbox WHERE registration = number AND {inbox.WAITING})
            AND NOT EXISTS (SELECT FROM @inbox WHERE registration = number AND due_at IS NOT NULL)
            AND NOT EXISTS (SELECT FROM @inbox AS inbox WHERE registration = number AND inbox.state <> 'open')
        LIMIT $3
    )
"""  # noqa: S608
KEYS_AT_ONCE: Final = 5_000
"""How many duplicate keys one transaction of a purge looks at."""
ROWS_AT_ONCE: Final = 500
"""How many dead letters or registrations one transaction of a purge deletes."""


class PostgresStore(Registrations, Inbox):
    """A `Store` in a PostgreSQL database, which receivers and workers on several machines may share.

    It needs the extra ``postgres`` and PostgreSQL 15 or later; the first use connects, and creates the tables in a
    schema of their own if they are missing. `asana_webhooks.store.postgres.postgres_schema` returns the SQL for those
    who create them themselves. The store belongs to the event loop that uses it first; use in another loop raises
    `ConfigurationError`.

    A commit waits for the server's disk: the store refuses a server with ``fsync`` or ``synchronous_commit`` off.
    Deliveries that wait share a statement, so they share a commit. TLS is as the DSN says
    (``?sslmode=verify-full&sslrootcert=…``). It works behind PgBouncer, too. Create a pool that you lend with
    ``statement_cache_size=0``: behind a pooler it must be so, and elsewhere plans then follow the size of the tables.

    ::

        async with PostgresStore("postgresql://asana:…@db.example.com/asana?sslmode=verify-full") as store:
            ...

    Secrets are sealed with *secret_box* before they are sent to the server. Without a box they are plain text in the
    database, its backups and perhaps its log; the store logs a warning. Opening the store tries one secret of each key,
    and logs an error for a key that fails; each check of the health tries them again.

    A cancelled call stops only the waiting: its statement goes on. A call that takes longer than *timeout* raises
    `StoreUnavailableError`, and its connection is closed.

    Args:
        dsn: ``postgresql://user:password@host:port/database``, or an ``asyncpg.Pool`` that you open and close.
        secret_box: seals the secrets of webhooks; ``None``: they are written as plain text.
        schema: the schema with the tables. Services that share a database need one each.
        create: whether to create the tables, and to bring those of an earlier release up to date. False, such as for a
            tool that looks into the store of a service: where this is to be done, it is a `ConfigurationError`.
        clock: returns the time in seconds since the epoch; ``None``: the database's clock, which all processes share.
        connections: how many connections the store opens at most; a lent pool has its own limit.
        timeout: seconds for a call: for a connection, and again for its statements.
        max_operations: how many additions, reads and heartbeats may wait, before `StoreFullError`.
        max_bytes: how many bytes of bodies may wait to be written; a larger delivery is never accepted.
        max_quarantined: how many deliveries one pending registration may have in quarantine.
        max_quarantined_bytes: the total size of their bodies in bytes.

    Raises:
        ConfigurationError: an argument is not valid.
        ModuleNotFoundError: asyncpg is not installed.
    """

    def __repr__(self) -> str:
        return f"<PostgresStore {'closed' if self._closed else 'open' if self._loop else 'new'}>"

    async def __aenter__(self) -> Self:
        try:
            await self._fetch("SELECT 1")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `Store.aclose`. A lent pool stays open. A server that does not answer delays it by *timeout* or two."""
        self._check_loop()
        self._closed = True
        await self._close_pool()

    async def _prepare(self, pool: Any) -> None:
        await super()._prepare(pool)
        if self._sealer.key_id is None:
            _log.warning("the PostgreSQL store has no secret_box: webhooks' secrets are plain text in the database")
        for problem in await self._unreadable(await self._attempt(pool, self._one_of_each_key)):
            _log.error(
                "secrets in PostgreSQL cannot be opened, so deliveries of their webhooks are answered 503: %.300r "
                "(a process that only runs workers may ignore this)",
                problem,
            )

    async def _one_of_each_key(self, db: Connection) -> Sequence[StoredSecret]:
        found: list[StoredSecret] = []
        while row := await db.first(OLDEST_OF_KEY, self._now(), found[-1].key_id if found else ""):
            found.append(from_row(*row))
        return found

    async def _unreadable(self, secrets: Sequence[StoredSecret]) -> Sequence[str]:
        """Open these secrets; return the text of the error for each that fails."""
        failed: dict[str | None, str] = {}
        await self._with_box(lambda: [self._sealer.open_or_note(one, failed) for one in secrets])
        return list(failed.values())

    async def health(self) -> StoreHealth:
        """See `Store.health`.

        It writes one row, and opens one secret of each key in use. It reports a transaction that has been open for ten
        minutes, if the role may see it (``GRANT pg_read_all_stats``).
        """
        self._check_usable()
        problems: list[str] = []
        try:
            self._check_room(1)  # like a delivery of one byte
            await self._do(self._probe)
        except (StoreError, ConfigurationError) as error:
            problems.append(str(error))
        writable = not problems
        found, secrets, silent, problem = await self._do(self._look)
        unreadable = await self._unreadable(secrets)
        first = found.pop("first")
        now = found.pop("now")
        return StoreHealth(
            waiting=min(sum(map(found.pop, ("ready", "delayed", "expired"))), MAX_COUNT),
            **found,
            oldest_age=None if first is None else max(0.0, now - first),
            writable=writable,
            secrets_readable=not unreadable,
            silent=silent,
            problems=(*problems, *unreadable, *problem),
        )

    async def _probe(self, db: Connection) -> None:
        await check_settings(db)
        await db.run(PROBE, self._now())

    async def _look(self, db: Connection) -> tuple[dict[str, Any], Sequence[StoredSecret], Any, Sequence[str]]:
        found = dict(await db.first(LOOK, self._now()))
        silent = tuple(row["webhook_gid"] for row in await db.fetch(SILENT, found["now"] - SILENT_AFTER))
        problems = [_old(row["pid"], row["age"]) for row in await db.fetch(OLDEST_TRANSACTION, OLD_TRANSACTION)]
        return found, await self._one_of_each_key(db), silent, problems

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """See `Store.purge`. It takes several transactions if there is much to delete."""
        check_seconds("older_than", older_than)
        ((now,),) = await self._fetch(f"SELECT {NOW}", self._now())
        before: float = now - older_than
        values = math.ceil(max(before, 0.0) * 1000), before, KEYS_AT_ONCE
        last: list[Any] = [-1, b"", 0]
        count = 0
        while rows := await self._fetch(PURGE_SEEN, *last, *values):
            *last, gone = rows[0]
            count += gone
        while dead and (gone := await self._change(PURGE_DEAD, before, ROWS_AT_ONCE)):
            count += gone
        while await self._change(PURGE_REGISTRATIONS, self._now(), before, ROWS_AT_ONCE):
            pass
        return count

    async def reseal(self) -> int:
        """Seal every secret with the current key of the store's box, plain text included.

        Call it once after a change of the key, or after adding a box to an existing store. Concurrent changes are kept.
        Cancelling it keeps the secrets resealed so far. A secret that the box cannot open is logged, and kept. The old
        forms of the secrets remain in the server's files until vacuum overwrites them, and in backups.

        Returns:
            How many secrets were resealed.

        Raises:
            ConfigurationError: the store has no secret box.
            StoreUnavailableError: the box cannot seal, or the store cannot be read or written.
        """
        if self._sealer.key_id is None:
            raise ConfigurationError("this store has no secret_box to reseal its secrets with; give it one")
        failed: dict[str | None, str] = {}
        count = 0
        for number, *old in await self._fetch(STALE, self._sealer.key_id):
            new = await self._with_box(partial(self._resealed, from_row(*old), failed))
            count += 0 if new is None else await self._change(RESEAL, number, *to_row(new), *old)
        for problem in failed.values():
            _log.warning("some secrets in PostgreSQL were not resealed: %.300r", problem)
        return count

    def _resealed(self, old: StoredSecret, failed: dict[str | None, str]) -> StoredSecret | None:
        secret = self._sealer.open_or_note(old, failed)
        return None if secret is None else self._sealer.seal(secret)


def _old(pid: int, age: float) -> str:
    return (
        f"a transaction has been open for {age / 60:.0f} minutes, so PostgreSQL keeps all that was deleted since, and "
        f"the store becomes slow. End it: pg_stat_activity has its process, {pid}."
    )
