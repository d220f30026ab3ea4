"""Purging the SQLite store in steps of a few milliseconds, so that other operations run in between."""

from functools import partial

from asana_webhooks._checks import check_seconds
from asana_webhooks.store.sqlite.database import Database
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.store.sqlite.inbox import Key, delete

__all__ = ["Purge"]

AFTER = "(event_at, signature, registration) > (?, ?, ?)"
END_OF_STEP = f"""
    SELECT event_at, signature, registration FROM seen WHERE {AFTER} AND event_at < ?
    ORDER BY event_at, signature, registration LIMIT 1 OFFSET ?
"""  # noqa: S608 - made of constants
PURGE_SEEN = f"""
    DELETE FROM seen WHERE {AFTER} AND (event_at, signature, registration) <= (?, ?, ?) AND received_at < ?
"""  # noqa: S608 - made of constants
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


class Purge(Database):
    """`Store.purge`."""

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """See `Store.purge`. It takes several transactions if there is much to delete."""
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
