"""The inbox of the SQLite store: its deliveries, and the keys that recognize duplicates."""

import asyncio
import json
import random
from collections.abc import Awaitable, Iterable, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any, Final

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import AsanaError, StoreError, StoreFullError
from asana_webhooks.store.base import DeliveryState, Lease, NewDelivery, PutResult, RegistrationState, StoredDelivery
from asana_webhooks.store.rules import (
    MAX_SKEW,
    add_done,
    check_integer,
    check_state,
    effective_state,
    event_time,
    initial_state,
    is_alone,
    minute_of,
    readable,
)
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.store.sqlite.maintenance import Database, named

__all__ = ["IN_STATE", "WAITING", "Inbox", "Key", "delete"]

PLACE = """
    SELECT id, number, state, deadline, EXISTS (
        SELECT 1 FROM inbox WHERE inbox.registration = registrations.number AND inbox.state = 'open'
    )
    FROM registrations WHERE id {}
"""
ADD_SEEN = "INSERT INTO seen (event_at, signature, registration, received_at) VALUES (?, ?, ?, ?)"
# '' for no turn or candidate (rows of earlier releases have NULL), and a bytearray in `_as_stored`: sqlite3 takes
# 0.4 us to look for an adapter of each None and bytes.
ADD = "INSERT INTO inbox (registration, state, received_at, turn, candidate) VALUES (?, ?, ?, nullif(?, ''), ?)"
ADD_BODY = "INSERT INTO bodies (delivery, body) VALUES (?, ?)"
QUARANTINED = """
    SELECT count(*), coalesce(sum(length(body)), 0) FROM inbox JOIN bodies ON delivery = id
    WHERE registration = ? AND state = 'quarantined'
"""
WAITING = "state = 'open' AND due_at IS NULL"
DUE = "due_at IS NOT NULL AND (fence = 0) IN (0, 1) AND due_at <= :now"
IDLE = f"""
    SELECT NOT EXISTS (SELECT 1 FROM inbox WHERE {WAITING}) AND NOT EXISTS (SELECT 1 FROM inbox WHERE {DUE})
        AND NOT EXISTS (SELECT 1 FROM inbox WHERE since > :latest)
"""  # noqa: S608 - made of constants, as the ones below
# What ended, and what began in the future: the clock was set back. Some at a time, so that others can write soon.
TO_WAKE = " UNION ALL ".join(
    f"SELECT * FROM (SELECT id FROM inbox WHERE {condition} LIMIT max(:limit, 100))"  # noqa: S608
    for condition in (DUE, "since > :latest", "turn > :latest AND due_at IS NULL")
)
WAKE = f"UPDATE inbox SET since = NULL, due_at = NULL, turn = min(turn, :now) WHERE id IN ({TO_WAKE})"  # noqa: S608
TURNS = "SELECT id FROM inbox WHERE turn IS NOT NULL AND due_at IS NULL {} ORDER BY turn, id LIMIT ?"
NOT_HALTED = """
    AND NOT EXISTS (
        SELECT 1 FROM inbox AS earlier
        WHERE earlier.registration = inbox.registration AND earlier.state = 'dead' AND earlier.id < inbox.id
    )
"""
# While the first one waits, a later one may be leased only if the first was claimed before.
NOT_BESIDE = """
    AND ((fence = 0 AND attempts = 0) OR registration NOT IN (
        SELECT registration FROM inbox WHERE due_at IS NOT NULL AND (fence = 0) = 0
    ))
"""
OLDEST = f"SELECT id FROM inbox WHERE {WAITING} ORDER BY id LIMIT ?"  # noqa: S608
COLUMNS = """
    SELECT inbox.id AS id, registrations.id AS registration, label, webhook_gid, resource, received_at, done, body, {}
    FROM inbox JOIN registrations ON number = registration JOIN bodies ON delivery = inbox.id
"""
LEASABLE = COLUMNS.format("unanswered, attempts + 1 AS attempt") + "WHERE inbox.id {}"
LEASE = """
    UPDATE inbox SET since = ?, due_at = ?, fence = ?, turn = max(turn, ?), attempts = attempts + 1,
        unanswered = unanswered + 1
    WHERE id {}
"""
HELD = "SELECT id, fence FROM inbox WHERE id {}"
HEADS = "SELECT registration FROM inbox WHERE turn IS NOT NULL AND id {}"
GIVE_TURNS = """
    UPDATE inbox SET turn = ? WHERE turn IS NULL AND id IN (
        SELECT (SELECT min(id) FROM inbox WHERE registration = number AND state = 'open')
        FROM registrations WHERE number {}
    )
"""
ANSWER = "UPDATE inbox SET since = ?, due_at = ?, {} WHERE id = ? AND fence = ?"
RETRY = ANSWER.format("fence = 0, unanswered = 0, error = ?, done = ?")
BURY = ANSWER.format("fence = 0, unanswered = 0, error = ?, done = ?, turn = NULL, state = 'dead'")
RELEASE = ANSWER.format("fence = -1, attempts = attempts - 1, unanswered = unanswered - 1")
RUNS = "coalesce(due_at > :now AND since <= :latest, 0)"
HELD_AS = f"iif({RUNS}, iif(fence = 0, 'delayed', 'leased'), 'waiting')"
STATE = f"iif(inbox.state = 'open', {HELD_AS}, inbox.state)"
STORED = COLUMNS.format(f"{STATE} AS state, iif({RUNS}, due_at, NULL) AS due_at, attempts, error")
DISCARDABLE = f"SELECT id FROM inbox WHERE id = :id AND {STATE} <> 'leased'"  # noqa: S608
BY_ID = f"{STORED} WHERE inbox.id = :id"
IN_STATE = {
    DeliveryState.QUARANTINED: "inbox.state <> 'open' AND inbox.state = 'quarantined'",
    DeliveryState.WAITING: f"inbox.state = 'open' AND NOT {RUNS}",
    DeliveryState.DELAYED: f"due_at IS NOT NULL AND (fence = 0) = 1 AND {RUNS}",
    DeliveryState.LEASED: f"due_at IS NOT NULL AND (fence = 0) = 0 AND {RUNS}",
    DeliveryState.DEAD: "inbox.state <> 'open' AND inbox.state = 'dead'",
}
ROWS_AT_ONCE = 50
"""How many rows one statement inserts; each number of rows is a statement of its own."""
SAVE_EVERY: Final = 60.0
"""Seconds between saving when registrations got their last deliveries."""

Key = tuple[int, bytes | bytearray | str, int]
Place = tuple[int, DeliveryState]


class Inbox(Database):
    """The methods of `Store` for deliveries."""

    _saving: asyncio.TimerHandle | None = None
    _was_empty = False
    """Whether the last claim found nothing."""
    _claims = 0
    """How many claims there were, modulo three."""

    def put(self, delivery: NewDelivery) -> Awaitable[PutResult]:
        """See `Store.put`. It returns a future, which saves a receiver a task and 10 us."""
        try:
            self._check_usable()
            size = len(delivery.body)
            stored: asyncio.Future[PutResult] = self._writer.submit_batched(self._put, delivery, adds=size)
        except AsanaError as error:  # raised when awaited, as in every other method
            stored = asyncio.get_running_loop().create_future()
            stored.set_exception(error)
            return stored
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_EVERY, self._save_recent)
        return stored

    def _put(self, db: sqlite3.Connection, new: Sequence[NewDelivery]) -> Sequence[PutResult | StoreError]:
        self._writer.check_disk(db)
        now = self._clock()
        places, idle = _places(db, new, now=now)
        outcomes: list[PutResult | StoreError] = ["refused"] * len(new)
        waiting: dict[int, tuple[Key, NewDelivery]] = {}
        for index, one in enumerate(new):
            number, state = places.get((one.registration, one.candidate), (0, None))
            key = event_time(one.body), _as_stored(one.signature), number
            if state is DeliveryState.WAITING:
                waiting[index] = key, one
            elif state is DeliveryState.QUARANTINED:
                outcomes[index] = self._quarantine_one(db, key, one, now=now)
        while batch := list(islice(waiting, ROWS_AT_ONCE)):
            results = _insert(db, [waiting.pop(index) for index in batch], "open", now=now, idle=idle)
            for index, result in zip(batch, results, strict=True):
                outcomes[index] = result
        stored = {one.registration for one, outcome in zip(new, outcomes, strict=True) if outcome == "stored"}
        self._recent |= {number: minute_of(now) for (id, _), (number, _) in places.items() if id in stored}
        return outcomes

    def _quarantine_one(
        self, db: sqlite3.Connection, key: Key, new: NewDelivery, *, now: float
    ) -> PutResult | StoreError:
        known = "SELECT 1 FROM seen WHERE (event_at, signature, registration) = (?, ?, ?)"
        if db.execute(known, key).fetchone():
            return "duplicate"
        try:
            number, size = db.execute(QUARANTINED, (key[2],)).fetchone()
            self._quarantine.check_room(number, size, len(new.body))
        except StoreFullError as error:
            return error
        return _insert(db, [(key, new)], "quarantined", now=now, idle=set())[0]

    def _save_recent(self) -> None:
        """Save when registrations got their last deliveries: a write a minute instead of one for each delivery."""
        self._saving = None
        if not self._closed:
            self._writer.submit(self._save_some).add_done_callback(self._after_save)

    def _save_some(self, db: sqlite3.Connection) -> bool:
        """Save some; return whether there are more."""
        statement = "UPDATE registrations SET last_delivery_at = ? WHERE number = ?"
        numbers = sorted(self._recent)[:500]  # neighbours share pages
        db.executemany(statement, [(self._recent.pop(number), number) for number in numbers])
        return bool(self._recent)

    def _after_save(self, saved: asyncio.Future[bool]) -> None:
        if not saved.exception() and saved.result():
            self._save_recent()

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """See `Store.claim`. If the caller is cancelled, its leases are released."""
        check_integer("limit", limit)
        check_seconds("lease", lease)
        self._check_usable()
        if self._was_empty and await self._reader.submit(self._is_idle):
            return ()  # without a write, for a worker that polls
        limit = max(limit, 0)
        self._claims = (self._claims + 1) % 3
        # Half of the limit goes by turn. Every third claim rounds it down, so that claims of one take the oldest, too.
        by_turn = limit if ordered else (limit + (self._claims > 0)) // 2
        claimed = self._write(
            lambda db: _claim(db, limit, by_turn=by_turn, lease=lease, ordered=ordered, halt=halt, now=self._clock())
        )
        try:
            leases = await asyncio.shield(claimed)
        except asyncio.CancelledError:
            claimed.add_done_callback(self._give_back)
            raise
        self._was_empty = not leases
        return leases

    def _is_idle(self, db: sqlite3.Connection) -> bool:
        now = self._clock()
        (is_idle,) = db.execute(IDLE, {"now": now, "latest": now + MAX_SKEW}).fetchone()
        return bool(is_idle)

    def _give_back(self, claimed: asyncio.Future[Sequence[Lease]]) -> None:
        for lease in () if claimed.exception() else claimed.result():
            released = self._writer.submit(partial(_release, lease=lease))
            released.add_done_callback(lambda done: done.exception())  # if it failed, the lease expires

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """See `Store.extend`."""
        check_seconds("seconds", seconds)
        statement = "UPDATE inbox SET since = :now, due_at = :now + :seconds WHERE id = :id AND fence = :fence"
        values = {"seconds": seconds, "id": lease.id, "fence": lease.fence}
        return await self._write(lambda db: db.execute(statement, {**values, "now": self._clock()}).rowcount == 1)

    async def ack(self, lease: Lease) -> bool:
        """See `Store.ack`."""
        self._check_usable()
        return await self._writer.submit_batched(self._ack, lease)

    def _ack(self, db: sqlite3.Connection, leases: Sequence[Lease]) -> Sequence[bool]:
        is_one, ids = _among([lease.id for lease in leases])
        found = db.execute(HELD.format(is_one), (ids,))
        held = dict.fromkeys(found, True)
        delete(db, [lease.id for lease in leases if (lease.id, lease.fence) in held], now=self._clock())
        return [held.pop((lease.id, lease.fence), False) for lease in leases]

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None, done: Iterable[int] = ()) -> bool:
        """See `Store.fail`."""
        wait = None if retry_in is None else check_seconds("retry_in", retry_in)
        values = readable(error), json.dumps(add_done(lease.done, done)), lease.id, lease.fence

        def fail(db: sqlite3.Connection) -> bool:
            if wait is None:
                return db.execute(BURY, (None, None, *values)).rowcount == 1
            now = self._clock()
            return db.execute(RETRY, (now, now + wait, *values)).rowcount == 1

        return await self._write(fail)

    async def release(self, lease: Lease) -> bool:
        """See `Store.release`."""
        return await self._write(lambda db: _release(db, lease))

    async def deliveries(self, *, state: str, after: int = 0, limit: int = 100) -> Sequence[StoredDelivery]:
        """See `Store.deliveries`."""
        statement = (
            f"{STORED} WHERE {IN_STATE[check_state(state)]} AND inbox.id > :after ORDER BY inbox.id LIMIT :limit"
        )
        values = {"after": check_integer("after", after), "limit": max(check_integer("limit", limit), 0)}
        return await self._read(lambda db: self._stored(db, statement, values))

    async def delivery(self, id: int) -> StoredDelivery | None:
        """See `Store.delivery`."""
        values = {"id": check_integer("id", id)}
        found = await self._read(lambda db: self._stored(db, BY_ID, values))
        return found[0] if found else None

    def _stored(self, db: sqlite3.Connection, statement: str, values: dict[str, int]) -> list[StoredDelivery]:
        now = self._clock()
        found = named(db.execute(statement, {**values, "now": now, "latest": now + MAX_SKEW}))
        return [
            StoredDelivery(state=DeliveryState(row.pop("state")), done=tuple(json.loads(row.pop("done"))), **row)
            for row in found
        ]

    async def requeue(self, id: int) -> bool:
        """See `Store.requeue`."""
        check_integer("id", id)
        statement = "UPDATE inbox SET state = 'open', attempts = 0, fence = -1 WHERE id = ? AND state = 'dead'"
        return await self._write(lambda db: db.execute(statement, (id,)).rowcount == 1)

    async def discard(self, id: int) -> bool:
        """See `Store.discard`."""
        values = {"id": check_integer("id", id)}

        def discard(db: sqlite3.Connection) -> bool:
            now = self._clock()
            found = db.execute(DISCARDABLE, {**values, "now": now, "latest": now + MAX_SKEW}).fetchall()
            delete(db, [id for (id,) in found], now=now)
            return bool(found)

        return await self._write(discard)


def _places(
    db: sqlite3.Connection, new: Iterable[NewDelivery], *, now: float
) -> tuple[dict[tuple[str, str | None], Place], set[int]]:
    """Return where deliveries go, and the numbers of the registrations that have no open delivery.

    A place is the number of a registration and the state of its new deliveries, by its id and their candidate. Those to
    refuse have none.
    """
    candidates: dict[str, set[str | None]] = {}
    for one in new:
        candidates.setdefault(one.registration, set()).add(one.candidate)
    is_one, among = _among(list(candidates))
    rows = db.execute(PLACE.format(is_one), (among,))
    places: dict[tuple[str, str | None], Place] = {}
    idle: set[int] = set()
    for id, number, state, deadline, has_open in rows.fetchall():
        effective = effective_state(RegistrationState(state), deadline=deadline, now=now)
        for candidate in candidates[id]:
            names = () if candidate is None else db.execute("SELECT id FROM secrets WHERE registration = ?", (number,))
            initial = initial_state(effective, secrets={name for (name,) in names}, candidate=candidate)
            if initial is not None:
                places[id, candidate] = number, initial
        if not has_open:
            idle.add(number)
    return places, idle


def _insert(
    db: sqlite3.Connection, rows: Sequence[tuple[Key, NewDelivery]], state: str, *, now: float, idle: set[int]
) -> list[PutResult]:
    """Add deliveries that are not known yet. The first of a registration that is *idle* gets its turn."""
    results = _add_keys(db, [(*key, now) for key, _ in rows])
    fresh = [row for row, result in zip(rows, results, strict=True) if result == "stored"]
    if fresh:
        added: list[Any] = []
        for (_, _, number), new in fresh:
            added += number, state, now, now if number in idle else "", new.candidate or ""
            idle.discard(number)
        last = db.execute(_of_rows(ADD, len(fresh)), added).lastrowid or 0
        ids = range(last + 1 - len(fresh), last + 1)
        bodies = [value for id, (_, new) in zip(ids, fresh, strict=True) for value in (id, new.body)]
        db.execute(_of_rows(ADD_BODY, len(fresh)), bodies)
    return results


def _add_keys(db: sqlite3.Connection, keys: Sequence[tuple[Any, ...]]) -> list[PutResult]:
    try:
        db.execute(_of_rows(ADD_SEEN, len(keys)), [value for key in keys for value in key])
    except sqlite3.IntegrityError:  # one is known, so none was added: add them one by one
        statement = f"{ADD_SEEN} ON CONFLICT DO NOTHING"
        return ["stored" if db.execute(statement, key).rowcount else "duplicate" for key in keys]
    return ["stored"] * len(keys)


def delete(db: sqlite3.Connection, ids: Sequence[int], *, now: float) -> None:
    """Delete deliveries with their bodies. If the first open one of a registration goes, the next one gets its turn."""
    if ids:
        is_one, among = _among(ids)
        numbers = [number for (number,) in db.execute(HEADS.format(is_one), (among,))]
        for statement in ("DELETE FROM inbox WHERE id {}", "DELETE FROM bodies WHERE delivery {}"):
            db.execute(statement.format(is_one), (among,))
        if numbers:
            is_one, among = _among(numbers)
            db.execute(GIVE_TURNS.format(is_one), (now, among))


def _among(ids: Sequence[int | str]) -> tuple[str, int | str]:
    """Return a condition for a column, and its value. JSON lets one statement take any number, but is slow for one."""
    return ("= ?", ids[0]) if len(ids) == 1 else ("IN (SELECT value FROM json_each(?))", json.dumps(ids))


@cache
def _of_rows(insertion: str, rows: int) -> str:
    """Return a statement that inserts so many rows instead of one."""
    _, _, values = insertion.partition(" VALUES ")
    return insertion + f", {values}" * (rows - 1)


def _as_stored(signature: str) -> bytearray | str:
    """Return a signature as stored: bytes if it is lower-case hex, else the text, so that no two become equal."""
    try:
        content = bytearray.fromhex(signature)
    except ValueError:
        return signature
    return content if content.hex() == signature else signature


def _claim(
    db: sqlite3.Connection, limit: int, *, by_turn: int, lease: float, ordered: bool, halt: bool, now: float
) -> Sequence[Lease]:
    """Claim deliveries: up to *by_turn* of those whose turn it is, then the oldest ones."""
    db.execute(WAKE, {"now": now, "latest": now + MAX_SKEW, "limit": limit})
    conditions = (NOT_BESIDE if ordered else "") + (NOT_HALTED if halt else "")
    turns = db.execute(TURNS.format(conditions), (by_turn,))
    chosen = [id for (id,) in turns]
    if not ordered:
        oldest = [id for (id,) in db.execute(OLDEST, (limit,)) if id not in chosen]
        chosen += oldest[: limit - len(chosen)]
    if not chosen:
        return ()
    is_one, ids = _among(chosen)
    found = {row["id"]: row for row in named(db.execute(LEASABLE.format(is_one), (ids,)))}
    rows = _without_alone([found[id] for id in chosen])
    fence = random.getrandbits(62) + 1  # 0 is no fence
    is_one, ids = _among([row["id"] for row in rows])
    db.execute(LEASE.format(is_one), (now, now + lease, fence, now, ids))
    return [
        Lease(
            fence=fence,
            expires_at=now + lease,
            alone=is_alone(row.pop("unanswered")),
            done=tuple(json.loads(row.pop("done"))),
            **row,
        )
        for row in rows
    ]


def _without_alone(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows to claim. One that must run alone goes if it is the first; else it holds up its registration."""
    if is_alone(rows[0]["unanswered"]):
        return rows[:1]
    held_up: set[str] = set()
    ready = []
    for row in rows:
        if is_alone(row["unanswered"]):
            held_up.add(row["registration"])
        if row["registration"] not in held_up:
            ready.append(row)
    return sorted(ready, key=lambda row: int(row["id"]))


def _release(db: sqlite3.Connection, lease: Lease) -> bool:
    return db.execute(RELEASE, (None, None, lease.id, lease.fence)).rowcount == 1
