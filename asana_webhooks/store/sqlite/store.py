"""`SQLiteStore`: opening and closing, health, maintenance. Its other methods are in `registrations` and `inbox`."""

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import ConfigurationError, StoreError
from asana_webhooks.store.base import MAX_COUNT, DeliveryState, StoreHealth
from asana_webhooks.store.rules import MAX_SILENT, MAX_SKEW, SILENT_AFTER
from asana_webhooks.store.secret_box import StoredSecret
from asana_webhooks.store.sqlite import inbox
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.store.sqlite.inbox import Inbox, Key, delete
from asana_webhooks.store.sqlite.maintenance import back_up
from asana_webhooks.store.sqlite.registrations import LIVE, Registrations

__all__ = ["SQLiteStore"]

_log = logging.getLogger(__name__)

PROBE = "INSERT INTO probe (one, at) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET at = excluded.at"
COUNTED = {
    "ready": f"inbox WHERE {inbox.WAITING}",
    "delayed": "inbox WHERE due_at IS NOT NULL AND (fence = 0) = 1",
    "expired": "inbox WHERE due_at IS NOT NULL AND (fence = 0) = 0 AND due_at <= :now",
    "void": "inbox WHERE since > :latest AND fence <> 0",
    "leased": f"inbox WHERE {inbox.IN_STATE[DeliveryState.LEASED]}",
    "quarantined": f"inbox WHERE {inbox.IN_STATE[DeliveryState.QUARANTINED]}",
    "dead": f"inbox WHERE {inbox.IN_STATE[DeliveryState.DEAD]}",
    "webhooks": "registrations WHERE state = 'confirmed'",
}
FIRST_RECEIVED = f"""
    SELECT min(received_at) FROM (
        SELECT * FROM (SELECT received_at FROM inbox WHERE {inbox.WAITING} ORDER BY id LIMIT 1)
        UNION ALL
        SELECT * FROM (SELECT received_at FROM inbox WHERE due_at IS NOT NULL LIMIT {MAX_COUNT})
    )
"""  # noqa: S608 - made of constants, as the ones below
SIGN = "max(opened_at, coalesce(last_heartbeat_at, 0))"
SILENT = f"""
    SELECT webhook_gid, number, max({SIGN}, coalesce(last_delivery_at, 0)) FROM registrations
    WHERE state = 'confirmed' AND {SIGN} < ? ORDER BY {SIGN} LIMIT {10 * MAX_SILENT}
"""  # noqa: S608
# The oldest secret of the next key: it fails even if newer ones are sealed with another key of the same id.
OLDEST_OF_KEY = f"""
    SELECT secret, key_id FROM secrets JOIN registrations ON registrations.number = registration
    WHERE key_id IS NOT NULL AND key_id > :key AND {LIVE} ORDER BY key_id, secrets.number LIMIT 1
"""  # noqa: S608
AFTER = "(event_at, signature, registration) > (?, ?, ?)"
END_OF_STEP = f"""
    SELECT event_at, signature, registration FROM seen WHERE {AFTER} AND event_at < ?
    ORDER BY event_at, signature, registration LIMIT 1 OFFSET ?
"""  # noqa: S608
PURGE_SEEN = f"""
    DELETE FROM seen WHERE {AFTER} AND (event_at, signature, registration) <= (?, ?, ?) AND received_at < ?
"""  # noqa: S608
DEAD = """
    SELECT id, received_at < ?, length(body) FROM inbox JOIN bodies ON delivery = id
    WHERE state <> 'open' AND state = 'dead' AND id > ? ORDER BY id LIMIT ?
"""
PURGE_REGISTRATIONS = """
    DELETE FROM registrations WHERE number IN (
        SELECT number FROM registrations WHERE state <> 'confirmed' AND state = 'closed' AND deadline < ?
            AND NOT EXISTS (SELECT 1 FROM inbox WHERE inbox.registration = registrations.number)
        LIMIT 500
    )
"""
KEYS_AT_ONCE = 2_000
"""How many keys `_purge_seen` looks at in one transaction."""
DEAD_AT_ONCE = 500
"""The same for `_purge_dead`."""
BYTES_AT_ONCE = 4 * 1024**2
"""Once its bodies reach this size in bytes, a step of `_purge_dead` ends: overwriting deleted data fills the log."""


class SQLiteStore(Registrations, Inbox):
    """A `Store` in one SQLite file on a local disk; several processes on one machine may share it.

    A commit waits for the disk (``synchronous=FULL``), and concurrent calls share one commit. The first use opens the
    file; a new one can be used by its owner only. The store belongs to the event loop that uses it first; use in
    another loop raises `ConfigurationError`. Deleted data is overwritten with zeros in the file.

    Secrets are sealed with *secret_box* before they are written. Without a box they are plain text. A process that only
    handles deliveries or confirms registrations needs no box. Opening the store tries one secret of each key, and logs
    an error for a key that fails; each check of the health tries them again.

    SQLite before 3.51.3 (except 3.50 from 3.50.7 and 3.44 from 3.44.6) can lose a commit while another connection
    writes. With an affected version, a store that detects another writer logs a warning, and reports it in
    `StoreHealth.problems`: install the extra ``sqlite``, or use one store in one process.
    Source: https://www.sqlite.org/wal.html

    Args:
        path: the database file. It is created if missing; its directory must exist.
        secret_box: seals the secrets of webhooks; ``None``: they are written as plain text.
        clock: returns the time in seconds since the epoch. Processes that share the file must agree to a minute.
        busy_timeout: seconds to wait while another process writes, before `StoreUnavailableError`.
        max_operations: how many additions and heartbeats may wait, and how many reads, before `StoreFullError`.
        max_bytes: how many bytes of bodies may wait to be written; a larger delivery is never accepted.
        max_quarantined: how many deliveries one pending registration may have in quarantine.
        max_quarantined_bytes: the total size of their bodies in bytes.

    Raises:
        ConfigurationError: an argument is not valid.
    """

    _tried_keys = False

    def __repr__(self) -> str:
        return f"<SQLiteStore {'closed' if self._closed else 'open' if self._loop else 'new'}>"

    async def __aenter__(self) -> Self:
        try:
            await self._write(lambda _: None)
            await self._read(lambda _: None)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        if self._file.is_inherited():
            return  # its threads and connections are those of the process that forked this one
        async with self._closing:  # a second call must not end the threads while the first still writes
            if not self._closed:
                self._check_loop()
                self._closed = True
                if self._saving is not None:
                    self._saving.cancel()
                await self._writer.finish()
                with suppress(StoreError):
                    while self._recent:
                        await self._writer.submit(self._save_some)
            await self._reader.aclose()
            await self._writer.aclose()  # last, so that this connection copies the log into the file

    def _connect_to_read(self) -> sqlite3.Connection:
        connection = super()._connect_to_read()
        with suppress(Exception):  # the transaction that follows meets the same error
            for problem in () if self._tried_keys else self._unreadable(connection):
                _log.error(
                    "secrets in %.200a cannot be opened, so deliveries of their webhooks are answered 503: %.300r "
                    "(a process that only runs workers may ignore this)",
                    str(self._file),
                    problem,
                )
            self._tried_keys = True
        return connection

    def _unreadable(self, db: sqlite3.Connection) -> Sequence[str]:
        """Open one secret of each key in use; return the text of the error for each key that fails."""
        failed: dict[str | None, str] = {}
        values = {"key": "", "now": self._clock()}
        while row := db.execute(OLDEST_OF_KEY, values).fetchone():
            self._sealer.open_or_note(StoredSecret(*row), failed)
            _, values["key"] = row
        return list(failed.values())

    async def health(self) -> StoreHealth:
        """See `Store.health`.

        It writes one row, and opens one secret of each key in use. While another process writes, it takes up to
        *busy_timeout*; while the box is slow, as long as the box.
        """
        refused: tuple[str, ...] = ()

        def probe(db: sqlite3.Connection) -> None:
            self._writer.look_for_others(db)
            self._writer.check_disk(db)
            db.execute(PROBE, (self._clock(),))

        self._check_usable()
        try:
            self._reader.check_room(0)  # a delivery needs its webhook's secret
            await self._write(probe, adds=1)  # like a delivery of one byte
        except StoreError as error:
            refused = (str(error),)
        self._check_usable()
        return await self._reader.submit(lambda db: self._look(db, refused))  # without a limit: it works when full

    def _look(self, db: sqlite3.Connection, refused: tuple[str, ...]) -> StoreHealth:
        now = self._clock()
        times = {"now": now, "latest": now + MAX_SKEW}
        count: dict[str, int] = {}
        for name, rows in COUNTED.items():
            statement = f"SELECT count(*) FROM (SELECT 1 FROM {rows} LIMIT {MAX_COUNT})"  # noqa: S608
            (count[name],) = db.execute(statement, times).fetchone()
        (first,) = db.execute(FIRST_RECEIVED).fetchone()
        unreadable = self._unreadable(db)
        return StoreHealth(
            waiting=min(sum(map(count.pop, ("ready", "delayed", "expired", "void"))), MAX_COUNT),
            **count,
            oldest_age=None if first is None else max(0.0, now - first),
            writable=not refused,
            secrets_readable=not unreadable,
            silent=self._silent(db, before=now - SILENT_AFTER),
            log_bytes=self._file.log_bytes(),
            problems=(*refused, *unreadable, *self._writer.problems),
        )

    def _silent(self, db: sqlite3.Connection, *, before: float) -> tuple[str, ...]:
        rows = db.execute(SILENT, (before,))
        last = {gid: max(at, self._recent.get(number, 0.0)) for gid, number, at in rows}
        return tuple(sorted((gid for gid, at in last.items() if at < before), key=last.__getitem__)[:MAX_SILENT])

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """See `Store.purge`. It takes steps of a few milliseconds, so that other operations run in between."""
        before = self._clock() - check_seconds("older_than", older_than)
        count = 0
        key: Key | None = (-1, b"", 0)
        while key is not None:
            key, gone = await self._write(partial(_purge_seen, after=key, before=before))
            count += gone
        id: int | None = 0 if dead else None
        while id is not None:
            id, gone = await self._write(partial(_purge_dead, after=id, before=before))
            count += gone
        while await self._write(lambda db: db.execute(PURGE_REGISTRATIONS, (before,)).rowcount):
            pass
        while await self._write(self._writer.give_back):
            pass
        return count

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the database, as it is now, into a new file that only its owner can use; done when it is on the disk.

        Other calls continue meanwhile, and the write-ahead log grows until it is done. The copy contains the webhooks'
        secrets as the store has them: sealed, or in plain text. If the backup fails or is cancelled, there is no file
        at *path*. The store's guide says how to restore one.

        Raises:
            ConfigurationError: there is a file at *path*, or its directory does not exist.
            StoreUnavailableError: the database cannot be read, or the copy cannot be written.
        """
        await self._read(lambda _: None)  # open the database
        cancelled = threading.Event()
        try:
            await asyncio.to_thread(back_up, self._file, Path(path), cancelled)
        finally:
            cancelled.set()

    async def integrity_check(self) -> Sequence[str]:
        """Check the whole file for damage; return the problems found, at most 100 sentences.

        SQLite reads the whole file, and other reads of the store wait meanwhile, so run it in quiet hours. It cannot
        detect a change in the content of a body.
        Source: https://www.sqlite.org/pragma.html#pragma_integrity_check

        Raises:
            StoreUnavailableError: the file is too damaged to check, or cannot be read.
        """

        def check(db: sqlite3.Connection) -> Sequence[str]:
            found = [problem for (problem,) in db.execute("PRAGMA integrity_check") if problem != "ok"]
            orphans = db.execute("PRAGMA foreign_key_check").fetchall()
            broken = [f"a row of {table} refers to a missing row of {parent}" for table, _, parent, _ in orphans[:100]]
            return [*found, *broken][:100]

        return await self._read(check)

    async def reseal(self) -> int:
        """Seal every secret with the current key of the store's box, plain text included.

        Call it once after a change of the key, or after adding a box to an existing file. Concurrent changes are kept.
        Cancelling it keeps the secrets resealed so far. A secret that the box cannot open is logged, and kept.

        The old forms of the secrets are overwritten in the file. They may remain in the write-ahead log until SQLite
        overwrites it, in backups, and in old blocks of the disk.

        Returns:
            How many secrets were resealed.

        Raises:
            ConfigurationError: the store has no secret box.
            StoreUnavailableError: the box cannot seal, or the store cannot be read or written.
        """
        if self._sealer.key_id is None:
            raise ConfigurationError("this store has no secret_box to reseal its secrets with; give it one")
        stale = "SELECT number, secret, key_id FROM secrets WHERE key_id IS NOT ? ORDER BY number"
        failed: dict[str | None, str] = {}
        count = 0
        for number, *secret in await self._read(lambda db: db.execute(stale, (self._sealer.key_id,)).fetchall()):
            count += await self._reseal(number, StoredSecret(*secret), failed)
        for problem in failed.values():
            _log.warning("some secrets in %.200a were not resealed: %.300r", str(self._file), problem)
        return count

    async def _reseal(self, number: int, old: StoredSecret, failed: dict[str | None, str]) -> int:
        def resealed(_: sqlite3.Connection) -> StoredSecret | None:
            secret = self._sealer.open_or_note(old, failed)
            return None if secret is None else self._sealer.seal(secret)

        new = await self._read(resealed)  # one at a time, so that deliveries do not wait long for their secrets
        replace = "UPDATE secrets SET secret = ?, key_id = ? WHERE number = ? AND secret = ? AND key_id IS ?"
        return 0 if new is None else await self._write(lambda db: db.execute(replace, (*new, number, *old)).rowcount)


def _purge_seen(db: sqlite3.Connection, after: Key, *, before: float) -> tuple[Key | None, int]:
    """Delete old keys that come *after* a key; return where the next step begins, or ``None``, and how many went."""
    end = db.execute(END_OF_STEP, (*after, before * 1000, KEYS_AT_ONCE - 1)).fetchone()
    last = end or (before * 1000, b"", 0)
    return end, db.execute(PURGE_SEEN, (*after, *last, before)).rowcount


def _purge_dead(db: sqlite3.Connection, after: int, *, before: float) -> tuple[int | None, int]:
    """Delete old dead letters whose ids come *after* one; return as `_purge_seen` does."""
    rows = db.execute(DEAD, (before, after, DEAD_AT_ONCE)).fetchall()
    old: list[int] = []
    size = 0
    for id, is_old, length in rows:
        after = id
        if is_old:
            old.append(id)
            size += length
        if size >= BYTES_AT_ONCE:
            break
    delete(db, old, now=before)  # dead letters have no turn
    return (after if rows else None), len(old)
