"""`SQLiteStore`: the methods of the protocol, each handed to a lane."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from attrs import evolve

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks.errors import AsanaError, StoreError, StoreFullError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import (
    DeadLetter,
    Lease,
    NewDelivery,
    PutResult,
    Registration,
    StoreHealth,
    candidate_id,
)
from asana_webhooks.store.rules import check_integer, check_texts, readable
from asana_webhooks.store.secret_box import PlainText, Safe, SecretBox
from asana_webhooks.store.sqlite import inbox, log, purging, registrations
from asana_webhooks.store.sqlite.access import Access
from asana_webhooks.store.sqlite.file import DatabaseFile
from asana_webhooks.store.sqlite.maintenance import Keeper
from asana_webhooks.store.sqlite.room import Room

__all__ = ["SQLiteStore"]

_CROWDED = "too much is waiting to be written: the disk is too slow for it, or max_operations or max_bytes too low"


class SQLiteStore:
    """A `Store` in one SQLite file on a local disk; several processes of one machine may share it.

    A commit waits for the disk (``synchronous=FULL``), and all that is asked for at the same time shares one commit.
    The file is opened at first use, readable for its owner alone. The store belongs to the event loop that uses it
    first; another one gets a `ConfigurationError`.

    SQLite before 3.51.3 (but for 3.50.7 and 3.44.6, and what follows each) has a rare fault that can lose a commit
    while another connection writes. With such a version a store that shares its file logs a warning, and says so in
    `StoreHealth.problems`: keep to one process then. Within one store nothing is at risk.
    Source: https://www.sqlite.org/wal.html

    A write-ahead log that is found damaged is kept beside the database (``-wal-damaged-…``), logged as an error,
    and told of in `StoreHealth.problems`; the store goes on with what SQLite recovers.

    Secrets are sealed with *secret_box* before they are written. Those that are in the file already, as plain text or
    with another key, are sealed anew when it is opened. Whoever only works on deliveries, or confirms registrations,
    needs no box. What is deleted is overwritten with zeros in the file.

    Args:
        path: the database file; it is made if missing, its directory is not.
        secret_box: seals the secrets of webhooks. ``None``: they are written as plain text, with one warning in the
            log; `PLAIN_TEXT`: without it.
        clock: returns the time in seconds since the epoch; called in threads.
        busy_timeout: seconds to wait while another process writes; then it is a `StoreUnavailableError`.
        max_operations: how many additions and heartbeats may wait to be written, and how many questions to be
            answered, before there is a `StoreFullError`.
        max_bytes: how many bytes of bodies may wait to be written; a larger delivery is never taken.
        max_deliveries: how many deliveries may be unfinished before `put` raises `StoreFullError`; ``None``: as many
            as the disk can hold. They are counted once a second at most, unless none more would be taken; what others
            put into the file meanwhile, what is requeued, and what leaves quarantine may come on top.
        max_quarantined: how many deliveries one pending registration may have in quarantine.
        max_quarantined_bytes: how many bytes their bodies may have together.
        max_log_bytes: how long the write-ahead log (the file ``-wal``) may get while something that reads the database
            for long keeps SQLite from emptying it; then additions and heartbeats raise `StoreFullError`. All else
            goes on and still writes to the log: claims and acknowledgements. From 64 MiB on it is warned of, in the
            log and by `StoreHealth.problems`.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        secret_box: SecretBox | PlainText | None = None,
        clock: Callable[[], float] = time.time,
        # Timeouts
        busy_timeout: float = 5.0,
        # Limits
        max_operations: int = 10_000,
        max_bytes: int = 64 * 1024**2,
        max_deliveries: int | None = None,
        max_quarantined: int = 1_000,
        max_quarantined_bytes: int = 16 * 1024**2,
        max_log_bytes: int = 1024**3,
    ) -> None:
        long = min(log.LONG, check_count("max_log_bytes", max_log_bytes))
        self._file = DatabaseFile(path, busy_timeout=check_seconds("busy_timeout", busy_timeout), log_limit=long)
        self._clock = clock
        self._room = Room(
            max_deliveries=None if max_deliveries is None else check_count("max_deliveries", max_deliveries),
            max_quarantined=check_count("max_quarantined", max_quarantined, zero=True),
            max_quarantined_bytes=check_count("max_quarantined_bytes", max_quarantined_bytes, zero=True),
        )
        self._safe = Safe(secret_box)
        self._keeper = Keeper(self._file, safe=self._safe, log=log.LogWatch(max_log_bytes, long))
        self._access = Access(
            self._file,
            self._keeper,
            begun=self._begun,
            max_operations=check_count("max_operations", max_operations),
            max_bytes=check_count("max_bytes", max_bytes),
        )

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._access}>"

    async def __aenter__(self) -> Self:
        await self._access.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._access.aclose()

    def _begun(self) -> None:
        """Look anew at what another process may have changed; in the writing thread."""
        self._room.begin()
        self._keeper.begun()

    # Registrations

    async def open(self, id: str, *, resource: str, ttl: float) -> None:
        """See `Store.open`."""
        check_seconds("ttl", ttl)
        await self._access.add(lambda db: registrations.open_(db, id, resource=resource, deadline=self._clock() + ttl))

    async def offer(self, id: str, secret: Secret) -> bool:
        """See `Store.offer`; the secret is sealed before, in another thread than the one that writes."""
        check_texts(secret)
        if self._safe.key_id is None:
            self._keeper.tell_of_plain_text()
        sealed = await self._access.read(lambda _: self._safe.seal(secret))
        name = candidate_id(secret)
        return await self._access.add(lambda db: registrations.offer(db, id, sealed, candidate=name, now=self._clock()))

    async def confirm(self, id: str, *, webhook_gid: str, secret: Secret) -> bool:
        """See `Store.confirm`."""
        check_texts(webhook_gid, secret)
        name = candidate_id(secret)
        return await self._access.write(
            lambda db: registrations.confirm(db, id, webhook_gid=webhook_gid, candidate=name, now=self._clock())
        )

    async def close(self, id: str) -> bool:
        """See `Store.close`."""
        return await self._access.write(lambda db: registrations.close(db, id))

    async def find(self, id: str) -> Registration | None:
        """See `Store.find`."""
        return await self._access.read_together(self._find, id)

    def _find(self, db: sqlite3.Connection, ids: Sequence[str]) -> Sequence[Registration | StoreError | None]:
        return registrations.find(db, ids, now=self._clock(), safe=self._safe)

    async def sweep(self) -> Sequence[Registration]:
        """See `Store.sweep`."""
        found = await self._access.read(lambda db: registrations.overdue(db, now=self._clock(), safe=self._safe))
        return await self._access.write(lambda db: registrations.end_overdue(db, found, now=self._clock()))

    async def heartbeat(self, id: str) -> None:
        """See `Store.heartbeat`."""
        await self._access.add(lambda db: registrations.heartbeat(db, id, now=self._clock()))

    # Inbox

    def put(self, delivery: NewDelivery) -> Awaitable[PutResult]:
        """See `Store.put`; it returns a future, for a coroutine would cost a receiver 10 us more for a task."""
        try:
            return self._access.write_together(self._put, delivery, adds=len(delivery.body))
        except AsanaError as error:  # told when it is awaited, as by any other method
            refused: asyncio.Future[PutResult] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused

    def _put(self, db: sqlite3.Connection, deliveries: Sequence[NewDelivery]) -> Sequence[PutResult | StoreFullError]:
        self._keeper.log.check_room()
        return inbox.put(db, deliveries, now=self._clock(), room=self._room)

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """See `Store.claim`; leases that a cancelled caller would have got are given back."""
        check_integer("limit", limit)
        check_seconds("lease", lease)

        def operation(db: sqlite3.Connection) -> Sequence[Lease]:
            now = self._clock()
            return inbox.claim(db, max(limit, 0), now=now, until=now + lease, ordered=ordered, halt=halt)

        def give_back(db: sqlite3.Connection, leases: Sequence[Lease]) -> None:
            for one in leases:  # should that fail, it runs out by itself
                inbox.release(db, one, now=self._clock())

        return await self._access.write_or_undo(operation, undo=give_back)

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """See `Store.extend`."""
        check_seconds("seconds", seconds)

        def operation(db: sqlite3.Connection) -> bool:
            now = self._clock()
            return inbox.extend(db, lease, now=now, until=now + seconds)

        return await self._access.write(operation)

    async def done(self, lease: Lease) -> bool:
        """See `Store.done`."""
        return await self._access.write_together(self._done, lease)

    def _done(self, db: sqlite3.Connection, leases: Sequence[Lease]) -> Sequence[bool]:
        return inbox.done(db, leases, now=self._clock())

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None) -> bool:
        """See `Store.fail`."""
        wait = None if retry_in is None else check_seconds("retry_in", retry_in)

        def operation(db: sqlite3.Connection) -> bool:
            now = self._clock()
            retry_at = None if wait is None else now + wait
            return inbox.fail(db, lease, error=readable(error), now=now, retry_at=retry_at)

        return await self._access.write(operation)

    async def release(self, lease: Lease) -> bool:
        """See `Store.release`."""
        return await self._access.write(lambda db: inbox.release(db, lease, now=self._clock()))

    async def health(self) -> StoreHealth:
        """See `Store.health`.

        It writes a little to find out, but for a log that is full. While another process writes, it takes up to
        *busy_timeout*.
        """

        def probe(db: sqlite3.Connection) -> None:
            self._keeper.look_for_others()
            self._keeper.log.check_room()
            inbox.probe(db, now=self._clock())

        def look(db: sqlite3.Connection) -> StoreHealth:
            beats = registrations.heartbeats(db)
            health = inbox.health(db, now=self._clock(), room=self._room, written=written, heartbeats=beats)
            problems = (*health.problems, *crowded, *self._keeper.problems)
            return evolve(health, log_bytes=self._file.log_bytes(), problems=problems)

        crowded = () if self._access.writer.has_room(1) else (_CROWDED,)
        try:
            await self._access.write(probe, adds=1)  # as a delivery of one byte
        except StoreError:
            written = False
        else:
            written = True
        return await self._access.read(look)

    async def integrity_check(self) -> Sequence[str]:
        """Have SQLite look through the whole file for damage; return what it found, at most 100 sentences.

        It reads everything, and nothing else is read meanwhile, so this is for quiet hours. It cannot tell whether
        the content of a body was changed.
        Source: https://www.sqlite.org/pragma.html#pragma_integrity_check

        Raises:
            StoreUnavailableError: the file is so damaged that it cannot even be looked through, or cannot be read.
        """
        return await self._access.read(inbox.integrity)

    # Maintenance

    async def dead_letters(self, *, limit: int = 100, after: int = 0) -> Sequence[DeadLetter]:
        """See `Store.dead_letters`."""
        check_integer("limit", limit)
        check_integer("after", after)
        return await self._access.read(lambda db: inbox.dead_letters(db, limit=max(limit, 0), after=after))

    async def requeue(self, id: int) -> bool:
        """See `Store.requeue`."""
        check_integer("id", id)
        return await self._access.write(lambda db: inbox.requeue(db, id))

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """See `Store.purge`; it takes several transactions if there is much to forget."""
        before = self._clock() - check_seconds("older_than", older_than)
        count = 0
        while True:
            deliveries, over = await self._access.write(lambda db: purging.purge(db, before=before, dead=dead))
            count += deliveries
            if not deliveries + over:
                return count
