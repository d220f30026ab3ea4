"""`SQLiteStore`: the methods of `Store`, each submitted to the writing or the reading queue."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Self, TypeVar

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks.errors import AsanaError, ConfigurationError, StoreError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import (
    DeliveryState,
    Lease,
    NewDelivery,
    PutResult,
    Registration,
    RegistrationState,
    StoredDelivery,
    StoreHealth,
    candidate_id,
)
from asana_webhooks.store.rules import (
    QuarantineLimits,
    add_done,
    check_integer,
    check_label,
    check_state,
    check_texts,
    minute_of,
    readable,
)
from asana_webhooks.store.secret_box import Sealer, SecretBox, StoredSecret
from asana_webhooks.store.sqlite import inbox, registrations
from asana_webhooks.store.sqlite.file import DatabaseFile, sqlite3
from asana_webhooks.store.sqlite.maintenance import Maintenance
from asana_webhooks.store.sqlite.transactions import Operation, TransactionQueue

__all__ = ["SQLiteStore"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE = "INSERT INTO probe (one, at) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET at = excluded.at"

_SAVE_EVERY: Final = 60.0
"""Seconds between saving the times of last deliveries."""


class SQLiteStore:
    """A `Store` in one SQLite file on a local disk; several processes on one machine may share it.

    A commit waits for the disk (``synchronous=FULL``), and concurrent calls share one commit. The first use opens the
    file, which only its owner can read. The store belongs to the event loop that uses it first; use in another loop
    raises `ConfigurationError`.

    SQLite before 3.51.3 (except 3.50 from 3.50.7 and 3.44 from 3.44.6) has a rare bug: it can lose a commit while
    another connection writes. With an affected version, a store that detects another writer logs a warning, and reports
    it in `StoreHealth.problems` from then on. Install the extra ``sqlite``, which brings a current version, or use one
    process. A single store is not at risk.
    Source: https://www.sqlite.org/wal.html

    The write-ahead log (the file ``-wal``) grows while a long reader keeps SQLite from emptying it. Above 64 MiB, the
    store logs a warning and reports it in `StoreHealth.problems`. It still accepts deliveries.

    Secrets are sealed with *secret_box* before they are written. Without a box they are plain text, in a file that only
    its owner can read. A process that only handles deliveries or confirms registrations needs no box. Deleted data is
    overwritten with zeros in the file.

    When the store opens, it opens one secret of each key in use. If that fails, it logs an error that names the key and
    what to do, and continues: a key service may answer again. Each check of the health does the same, without the log.

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

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        secret_box: SecretBox | None = None,
        clock: Callable[[], float] = time.time,
        # Timeouts
        busy_timeout: float = 5.0,
        # Limits
        max_operations: int = 10_000,
        max_bytes: int = 64 * 1024**2,
        max_quarantined: int = 1_000,
        max_quarantined_bytes: int = 16 * 1024**2,
    ) -> None:
        self._file = DatabaseFile(path, busy_timeout=check_seconds("busy_timeout", busy_timeout))
        self._clock = clock
        self._quarantine = QuarantineLimits(max_quarantined, max_quarantined_bytes)
        self._sealer = Sealer(secret_box)
        self._maintenance = Maintenance(self._file)
        self._writer = TransactionQueue(
            self._file,
            connect=self._maintenance.connect,
            name="asana-webhooks-writer",
            begin="BEGIN IMMEDIATE",
            before=self._maintenance.before,
            after=self._maintenance.after,
            max_operations=check_count("max_operations", max_operations),
            max_bytes=check_count("max_bytes", max_bytes),
        )
        self._reader = TransactionQueue(
            self._file,
            connect=self._connect_to_read,
            name="asana-webhooks-reader",
            begin="BEGIN",
            max_operations=max_operations,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._tried_keys = False
        self._recent: dict[int, float] = {}
        """When the last deliveries of registrations were stored, by number, until that is saved."""
        self._saving: asyncio.TimerHandle | None = None

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
        if not self._closed:
            self._check_loop()
            self._closed = True
            if self._saving is not None:
                self._saving.cancel()
            with suppress(StoreError):
                while self._recent:
                    await self._writer.submit(lambda db: registrations.save_last_deliveries(db, self._recent))
        await self._reader.aclose()
        await self._writer.aclose()  # last, so that this connection copies the log into the file

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError("this store belongs to another event loop; create one in each loop")

    def _check_usable(self) -> None:
        self._check_loop()
        if self._closed:
            raise ConfigurationError("this store is closed; create a new one")

    def _connect_to_read(self) -> sqlite3.Connection:
        if self._file.opened is None:
            self._writer.connect()  # a reader cannot create tables, and would leave a log behind
        connection = self._file.connect_to_read()
        if not self._tried_keys:
            with suppress(Exception):  # the transaction that follows meets the same error
                self._log_unreadable(connection)
        return connection

    def _log_unreadable(self, connection: sqlite3.Connection) -> None:
        for problem in self._unreadable(connection):
            _log.error(
                "secrets in %.200a cannot be opened, so deliveries of their webhooks are answered 503: %.300r "
                "(a process that only runs workers may ignore this)",
                str(self._file),
                problem,
            )
        self._tried_keys = True

    def _unreadable(self, connection: sqlite3.Connection) -> Sequence[str]:
        return registrations.unreadable(connection, now=self._clock(), sealer=self._sealer)

    def _write(self, operation: Operation[T]) -> asyncio.Future[T]:
        self._check_usable()
        return self._writer.submit(operation)

    def _add(self, operation: Operation[T], *, size: int = 0) -> asyncio.Future[T]:
        """Run a write that adds data; raise `StoreFullError` if too many are waiting."""
        self._check_usable()
        return self._writer.submit(operation, adds=size)

    def _read(self, operation: Operation[T]) -> asyncio.Future[T]:
        self._check_usable()
        return self._reader.submit(operation, adds=0)

    # Registrations

    async def open_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", ttl: float, replaces: str | None = None
    ) -> bool:
        """See `Store.open_registration`."""
        check_seconds("ttl", ttl)
        values = {"id": id, "resource": resource, "label": check_label(label), "public_url": public_url}

        def open_(db: sqlite3.Connection) -> bool:
            now = self._clock()
            return registrations.open_(db, {**values, "replaces": replaces, "now": now, "deadline": now + ttl})

        return await self._add(open_)

    async def adopt_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", webhook_gid: str, secret: Secret
    ) -> bool:
        """See `Store.adopt_registration`. The reading thread seals the secret first."""
        check_texts(secret)
        sealed = await self._read(lambda _: self._sealer.seal(secret))
        values = {"id": id, "resource": resource, "label": check_label(label), "public_url": public_url}
        values |= {"webhook_gid": webhook_gid, "candidate": candidate_id(secret)}
        sealed_values = {"secret": sealed.content, "key_id": sealed.key_id}
        return await self._add(lambda db: registrations.adopt(db, {**values, **sealed_values, "now": self._clock()}))

    async def add_candidate(self, id: str, secret: Secret) -> bool:
        """See `Store.add_candidate`. The reading thread seals the secret, so that writes do not wait for the box."""
        check_texts(secret)
        sealed = await self._read(lambda _: self._sealer.seal(secret))
        name = candidate_id(secret)
        return await self._add(
            lambda db: registrations.add_candidate(db, id, sealed, candidate=name, now=self._clock())
        )

    async def confirm_registration(
        self, id: str, *, webhook_gid: str, secret: Secret, heartbeat_at: float | None = None
    ) -> bool:
        """See `Store.confirm_registration`."""
        check_texts(webhook_gid, secret)
        confirm = partial(
            registrations.confirm,
            id=id,
            webhook_gid=webhook_gid,
            candidate=candidate_id(secret),
            heartbeat_at=heartbeat_at,
        )
        return await self._write(lambda db: confirm(db, now=self._clock()))

    async def close_registration(self, id: str) -> bool:
        """See `Store.close_registration`."""
        return await self._write(lambda db: registrations.close(db, id, now=self._clock()))

    async def expire_registrations(self) -> Sequence[Registration]:
        """See `Store.expire_registrations`."""
        found = await self._read(
            lambda db: registrations.overdue(db, now=self._clock(), sealer=self._sealer, recent=self._recent)
        )
        return await self._write(lambda db: registrations.end_overdue(db, found, now=self._clock()))

    async def find_registration(self, id: str) -> Registration | None:
        """See `Store.find_registration`."""
        self._check_usable()
        return await self._reader.submit_batched(self._find, id, adds=0)

    def _find(self, db: sqlite3.Connection, ids: Sequence[str]) -> Sequence[Registration | StoreError | None]:
        return registrations.find(db, ids, now=self._clock(), sealer=self._sealer, recent=self._recent)

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
        wanted = {name: value for name, value in given.items() if value is not None}
        last = max(check_integer("limit", limit), 0)

        def look(db: sqlite3.Connection) -> Sequence[Registration]:
            now, recent = self._clock(), self._recent
            return registrations.find_all(db, wanted, state=state, after=after, limit=last, now=now, recent=recent)

        return await self._read(look)

    async def record_heartbeat(self, id: str) -> None:
        """See `Store.record_heartbeat`."""
        await self._add(lambda db: registrations.record_heartbeat(db, id, now=self._clock()))

    async def retire_registration(self, id: str, *, after: float) -> bool:
        """See `Store.retire_registration`."""
        check_seconds("after", after)
        return await self._write(lambda db: registrations.retire(db, id, at=self._clock() + after))

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
        failed: dict[str | None, str] = {}
        count = 0
        while True:  # repeat for secrets that moved meanwhile, because a candidate was confirmed
            found = await self._read(lambda db: registrations.stale(db, key_id=self._sealer.key_id))
            stale = [old for old in found if old.secret.key_id not in failed]
            if not stale:
                break
            count += sum([await self._reseal(old, failed) for old in stale])
        for problem in failed.values():
            _log.warning("some secrets in %.200a were not resealed: %.300r", str(self._file), problem)
        return count

    async def _reseal(self, old: registrations.StaleSecret, failed: dict[str | None, str]) -> int:
        def resealed(_: sqlite3.Connection) -> StoredSecret | None:
            secret = registrations.open_or_note(old.secret, self._sealer, failed)
            return None if secret is None else self._sealer.seal(secret)

        new = await self._read(resealed)  # one at a time, so that deliveries do not wait long for their secrets
        return 0 if new is None else await self._write(lambda db: registrations.replace_secret(db, old, new))

    # Inbox

    def put(self, delivery: NewDelivery) -> Awaitable[PutResult]:
        """See `Store.put`. It returns a future, which saves a receiver a task and 10 us."""
        try:
            self._check_usable()
            stored: asyncio.Future[PutResult] = self._writer.submit_batched(
                self._put, delivery, adds=len(delivery.body)
            )
        except AsanaError as error:  # raised when awaited, as in every other method
            refused: asyncio.Future[PutResult] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVE_EVERY, self._save_recent)
        return stored

    def _put(self, db: sqlite3.Connection, deliveries: Sequence[NewDelivery]) -> Sequence[PutResult | StoreError]:
        now = self._clock()
        outcomes, numbers = inbox.put(db, deliveries, now=now, limits=self._quarantine)
        self._recent.update(dict.fromkeys(numbers, minute_of(now)))
        return outcomes

    def _save_recent(self) -> None:
        """Save when registrations got their last deliveries: a write a minute instead of one for each delivery."""
        self._saving = None
        if self._recent and not self._closed:
            saved = self._writer.submit(lambda db: registrations.save_last_deliveries(db, self._recent))
            saved.add_done_callback(self._after_save)

    def _after_save(self, saved: asyncio.Future[bool]) -> None:
        if not saved.cancelled() and saved.exception() is None and saved.result():
            self._save_recent()

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """See `Store.claim`. If the caller is cancelled, its leases are released."""
        check_integer("limit", limit)
        check_seconds("lease", lease)
        self._check_usable()

        def claim(db: sqlite3.Connection) -> Sequence[Lease]:
            return inbox.claim(db, max(limit, 0), lease=lease, ordered=ordered, halt=halt, now=self._clock())

        claimed = self._writer.submit(claim)
        try:
            return await asyncio.shield(claimed)
        except asyncio.CancelledError:
            claimed.add_done_callback(self._give_back)
            raise

    def _give_back(self, claimed: asyncio.Future[Sequence[Lease]]) -> None:
        if claimed.exception() is None:
            for lease in claimed.result():
                released = self._writer.submit(partial(inbox.release, lease=lease))
                released.add_done_callback(lambda done: done.exception())  # if it failed, the lease expires

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """See `Store.extend`."""
        check_seconds("seconds", seconds)
        return await self._write(lambda db: inbox.extend(db, lease, seconds=seconds, now=self._clock()))

    async def ack(self, lease: Lease) -> bool:
        """See `Store.ack`."""
        self._check_usable()
        return await self._writer.submit_batched(self._ack, lease)

    def _ack(self, db: sqlite3.Connection, leases: Sequence[Lease]) -> Sequence[bool]:
        return inbox.ack(db, leases, now=self._clock())

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None, done: Iterable[int] = ()) -> bool:
        """See `Store.fail`."""
        if retry_in is not None:
            check_seconds("retry_in", retry_in)
        finished = add_done(lease.done, done)
        fail = partial(inbox.fail, lease=lease, error=readable(error), retry_in=retry_in, done=finished)
        return await self._write(lambda db: fail(db, now=self._clock()))

    async def release(self, lease: Lease) -> bool:
        """See `Store.release`."""
        return await self._write(lambda db: inbox.release(db, lease))

    async def health(self) -> StoreHealth:
        """See `Store.health`.

        It writes one row, and opens one secret of each key in use. While another process writes, it takes up to
        *busy_timeout*; while the box is slow, as long as the box.
        """
        self._check_usable()
        refused: tuple[str, ...] = ()

        def probe(db: sqlite3.Connection) -> None:
            self._maintenance.look_for_others(db)
            db.execute(PROBE, (self._clock(),))

        try:
            self._reader.check_room(0)  # a delivery needs its webhook's secret
            await self._add(probe, size=1)  # like a delivery of one byte
        except StoreError as error:
            refused = (str(error),)

        def look(db: sqlite3.Connection) -> StoreHealth:
            now = self._clock()
            unreadable = self._unreadable(db)
            return StoreHealth(
                **inbox.counts(db, now=now),
                **registrations.counts(db, now=now),
                writable=not refused,
                secrets_readable=not unreadable,
                log_bytes=self._file.log_bytes(),
                problems=(*refused, *unreadable, *self._maintenance.problems),
            )

        self._check_usable()
        return await self._reader.submit(look)  # without a limit: it has to work when the store is full

    async def integrity_check(self) -> Sequence[str]:
        """Check the whole file for damage; return the problems found, at most 100 sentences.

        SQLite reads the whole file, and other reads of the store wait meanwhile, so run it in quiet hours. It cannot
        detect a change in the content of a body.
        Source: https://www.sqlite.org/pragma.html#pragma_integrity_check

        Raises:
            StoreUnavailableError: the file is too damaged to check, or cannot be read.
        """
        return await self._read(inbox.integrity)

    # Maintenance

    async def deliveries(self, *, state: DeliveryState, after: int = 0, limit: int = 100) -> Sequence[StoredDelivery]:
        """See `Store.deliveries`."""
        wanted = check_state(state)
        values = {"after": check_integer("after", after), "limit": max(check_integer("limit", limit), 0)}
        return await self._read(lambda db: inbox.deliveries(db, wanted, **values, now=self._clock()))

    async def delivery(self, id: int) -> StoredDelivery | None:
        """See `Store.delivery`."""
        check_integer("id", id)
        return await self._read(lambda db: inbox.delivery(db, id, now=self._clock()))

    async def requeue(self, id: int) -> bool:
        """See `Store.requeue`."""
        check_integer("id", id)
        return await self._write(lambda db: inbox.requeue(db, id, now=self._clock()))

    async def discard(self, id: int) -> bool:
        """See `Store.discard`."""
        check_integer("id", id)
        return await self._write(lambda db: inbox.discard(db, id, now=self._clock()))

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """See `Store.purge`. It takes several transactions if there is much to delete."""
        before = self._clock() - check_seconds("older_than", older_than)
        count = 0
        key: inbox.Key | None = inbox.FIRST_KEY
        while key is not None:
            key, gone = await self._write(partial(inbox.purge_seen, after=key, before=before))
            count += gone
        id: int | None = 0 if dead else None
        while id is not None:
            id, gone = await self._write(partial(inbox.purge_dead, after=id, before=before))
            count += gone
        while await self._write(lambda db: registrations.purge(db, before=before)):
            pass
        return count
