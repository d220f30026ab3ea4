"""The inbox of the PostgreSQL store: its deliveries, and the keys that recognize duplicates."""

import asyncio
import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any, Final

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import StoreError
from asana_webhooks.store.base import DeliveryState, Lease, NewDelivery, PutResult, RegistrationState, StoredDelivery
from asana_webhooks.store.postgres.connections import NOW, Batch, Connection, Database, check_texts
from asana_webhooks.store.rules import (
    MAX_SKEW,
    add_done,
    check_integer,
    check_state,
    effective_state,
    event_time,
    initial_state,
    is_alone,
    readable,
)

__all__ = ["IN_STATE", "WAITING", "Inbox"]

# Once a minute the first put notes the time in the registration, but waits for nobody who has locked that.
NOTE = f"""
    UPDATE @registrations SET last_delivery_at = floor({NOW} / 60) * 60 WHERE number = ANY(ARRAY(
        SELECT number FROM @registrations
        WHERE number = ANY({{}}) AND last_delivery_at IS DISTINCT FROM floor({NOW} / 60) * 60
        FOR NO KEY UPDATE SKIP LOCKED
    ))
"""  # noqa: S608 - made of constants, as the ones below
# The duplicate keys are inserted in their order, so that two of these statements never wait for each other in a circle.
# PostgreSQL expects one row here and would join with nested loops; it looks up what is IN … IS TRUE in a hash table.
PUT = f"""
    WITH new AS (
        SELECT place, number, event_at, signature, body
        FROM unnest($2::text[], $3::bigint[], $4::bytea[], $5::bytea[])
            WITH ORDINALITY AS given (id, event_at, signature, body, place)
        JOIN @registrations AS registrations USING (id) WHERE state = 'confirmed'
    ), first AS (
        SELECT DISTINCT ON (event_at, signature, number) event_at, signature, number, place FROM new
        ORDER BY event_at, signature, number, place
    ), fresh AS (
        INSERT INTO @seen (event_at, signature, registration, received_at)
        SELECT event_at, signature, number, {NOW} FROM first ORDER BY event_at, signature, number
        ON CONFLICT DO NOTHING RETURNING event_at, signature, registration AS number
    ), stored AS (
        SELECT place, number FROM first
        WHERE ((event_at, signature, number) IN (SELECT event_at, signature, number FROM fresh)) IS TRUE
    ), noted AS (
        {NOTE.format("ARRAY(SELECT number FROM stored)")}
    ), added AS (
        INSERT INTO @inbox (registration, received_at, body)
        SELECT number, {NOW}, body FROM new WHERE (place IN (SELECT place FROM stored)) IS TRUE ORDER BY place
    )
    SELECT place, place IN (SELECT place FROM stored) AS is_stored FROM new
"""  # noqa: S608
# The lock waits for a confirmation or closing that has begun, and they wait for this put: else a delivery that is put
# into quarantine meanwhile would stay there for ever.
PLACE = f"SELECT number, state, deadline, {NOW} AS now FROM @registrations WHERE id = $2 FOR SHARE"  # noqa: S608
QUARANTINED = """
    SELECT count(*) AS number, coalesce(sum(octet_length(body)), 0)::bigint AS size FROM @inbox
    WHERE registration = $1 AND state <> 'open' AND state = 'quarantined'
"""
ADD_SEEN = """
    INSERT INTO @seen (event_at, signature, registration, received_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
"""
ADD = "INSERT INTO @inbox (registration, state, received_at, candidate, body) VALUES ($1, $2, $3, $4, $5)"
WAITING = "state = 'open' AND due_at IS NULL"
# The same for one that was waiting a moment ago, so that PostgreSQL looks it up by its id, and not among all that wait.
STILL_WAITING = "state <> 'dead' AND due_at IS NULL"
LATEST = f"({NOW} + {MAX_SKEW})"
# What ended, and what began in the future: the clock was set back. Some at a time, so that a claim is short.
WAKE = f"""
    WITH ended AS (
        SELECT id FROM @inbox WHERE due_at IS NOT NULL AND due_at <= {NOW}
        ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ), ahead AS (
        SELECT id FROM @inbox WHERE since IS NOT NULL AND since > {LATEST}
        ORDER BY since LIMIT $2 FOR UPDATE SKIP LOCKED
    )
    UPDATE @inbox SET since = NULL, due_at = NULL
    WHERE id = ANY(ARRAY(SELECT id FROM ended UNION ALL SELECT id FROM ahead))
"""  # noqa: S608
# Registrations take turns in the order of their numbers, from the one after $1: each with its oldest waiting delivery.
# Each step is one look into an index, and there are as many steps as rows are asked for.
NEXT = f"""
    SELECT registration, id FROM @inbox WHERE {WAITING} AND registration > {{}} ORDER BY registration, id LIMIT 1
"""  # noqa: S608
TURNS = f"""
    WITH RECURSIVE behind AS (
        ({NEXT.format("$1::bigint")})
        UNION ALL SELECT next.* FROM behind CROSS JOIN LATERAL ({NEXT.format("behind.registration")}) AS next
    ), ahead AS (
        ({NEXT.format("0")})
        UNION ALL SELECT next.* FROM ahead CROSS JOIN LATERAL ({NEXT.format("ahead.registration")}) AS next
        WHERE ahead.registration < $1
    ), turns AS (
        SELECT * FROM (SELECT * FROM behind UNION ALL SELECT * FROM ahead WHERE registration <= $1) AS every LIMIT $2
    )
"""  # noqa: S608
# By turn first; then the oldest ones fill the limit $3.
CHOOSE = f"""
    {TURNS}, by_turn AS (
        SELECT id, registration, unanswered FROM @inbox WHERE {STILL_WAITING} AND id = ANY(ARRAY(SELECT id FROM turns))
        FOR UPDATE SKIP LOCKED
    ), oldest AS (
        SELECT id, registration, unanswered FROM @inbox WHERE {WAITING} AND id NOT IN (SELECT id FROM by_turn)
        ORDER BY id LIMIT $3 - (SELECT count(*) FROM by_turn) FOR UPDATE SKIP LOCKED
    )
    SELECT *, true AS is_turn FROM by_turn UNION ALL SELECT *, false FROM oldest
"""  # noqa: S608
# Whether a delivery is the first one open of its registration, and none is leased beside it.
IS_HEAD = """
    (
        SELECT true FROM @inbox AS other WHERE other.registration = head.registration AND other.due_at IS NOT NULL
        AND (other.id < head.id OR other.fence <> 0) LIMIT 1
    ) IS NULL
"""
NOT_HALTED = """
    (
        SELECT true FROM @inbox AS other WHERE other.registration = head.registration AND other.state <> 'open'
        AND other.state = 'dead' AND other.id < head.id LIMIT 1
    ) IS NULL
"""
LOOK = f"{TURNS} SELECT registration, {{}} AS is_free FROM turns AS head"  # noqa: S608
# Whoever claims in order locks the registrations first. What others have claimed of them is then visible to the next
# statement, which chooses; in one statement it would not be.
LOCK = """
    SELECT number FROM unnest($1::bigint[]) WITH ORDINALITY AS given (number, place)
    JOIN @registrations AS registrations USING (number)
    ORDER BY place LIMIT $2 FOR NO KEY UPDATE OF registrations SKIP LOCKED
"""
# Not "registration = number ORDER BY id", for which PostgreSQL may look through all that wait, by age.
HEADS = f"""
    SELECT id, registration, unanswered, true AS is_turn FROM @inbox WHERE {STILL_WAITING} AND id = ANY(ARRAY(
        SELECT head.id FROM unnest($1::bigint[]) AS locked (number) CROSS JOIN LATERAL (
            SELECT id, registration FROM @inbox WHERE {WAITING} AND registration >= number
            ORDER BY registration, id LIMIT 1
        ) AS head WHERE head.registration = number AND {{}}
    )) FOR UPDATE SKIP LOCKED
"""  # noqa: S608
LEASE = f"""
    UPDATE @inbox AS inbox SET since = {NOW}, due_at = {NOW} + $3, fence = $4, attempts = attempts + 1,
        unanswered = unanswered + 1
    FROM @registrations AS registrations WHERE number = registration AND inbox.id = ANY($2)
    RETURNING inbox.id, registrations.id AS registration, label, webhook_gid, resource, received_at,
        due_at AS expires_at, fence, done, attempts AS attempt, unanswered - 1 AS unanswered, body
"""  # noqa: S608
LOOK_AT: Final = 1_000
"""How many registrations an ordered claim looks at, at most, before it looks at the next so many …"""
LOOKS: Final = 10
"""… and how often. The next claim goes on from there."""

ACK = """
    DELETE FROM @inbox AS inbox USING unnest($1::bigint[], $2::bigint[]) AS held (id, fence)
    WHERE inbox.id = held.id AND inbox.fence = held.fence RETURNING inbox.id, inbox.fence
"""
EXTEND = f"UPDATE @inbox SET since = {NOW}, due_at = {NOW} + $4 WHERE id = $2 AND fence = $3"  # noqa: S608
RETRY = f"""
    UPDATE @inbox SET since = {NOW}, due_at = {NOW} + $6, fence = 0, unanswered = 0, error = $4, done = $5
    WHERE id = $2 AND fence = $3
"""  # noqa: S608
BURY = """
    UPDATE @inbox SET state = 'dead', since = NULL, due_at = NULL, fence = 0, unanswered = 0, error = $3, done = $4
    WHERE id = $1 AND fence = $2
"""
RELEASE = """
    UPDATE @inbox SET since = NULL, due_at = NULL, fence = 0, attempts = attempts - 1, unanswered = unanswered - 1
    WHERE id = ANY($1) AND fence = $2
"""
RUNS = f"coalesce(due_at > {NOW} AND since <= {LATEST}, false)"
STATE = f"""
    CASE WHEN inbox.state <> 'open' THEN inbox.state WHEN NOT {RUNS} THEN 'waiting'
    WHEN fence = 0 THEN 'delayed' ELSE 'leased' END
"""
STORED = f"""
    SELECT inbox.id, registrations.id AS registration, label, webhook_gid, resource, received_at, done, body,
        {STATE} AS state, CASE WHEN {RUNS} THEN due_at END AS due_at, attempts, error
    FROM @inbox AS inbox JOIN @registrations AS registrations ON number = registration
"""  # noqa: S608
IN_STATE = {
    DeliveryState.QUARANTINED: "inbox.state <> 'open' AND inbox.state = 'quarantined'",
    DeliveryState.WAITING: f"inbox.state = 'open' AND NOT {RUNS}",
    DeliveryState.DELAYED: f"due_at IS NOT NULL AND fence = 0 AND {RUNS}",
    DeliveryState.LEASED: f"due_at IS NOT NULL AND fence <> 0 AND {RUNS}",
    DeliveryState.DEAD: "inbox.state <> 'open' AND inbox.state = 'dead'",
}
DISCARD = f"DELETE FROM @inbox AS inbox WHERE id = $2 AND {STATE} <> 'leased'"  # noqa: S608
REQUEUE = "UPDATE @inbox SET state = 'open', attempts = 0 WHERE id = $1 AND state = 'dead'"

Outcomes = Sequence[PutResult | StoreError | None]


class Inbox(Database):
    """The methods of `Store` for deliveries."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._puts: Batch[NewDelivery, PutResult | None] = Batch(self._put, self._spawn)
        self._acks: Batch[Lease, bool] = Batch(self._ack, self._spawn)
        self._turn = random.getrandbits(31)
        """The number of the registration that was served last. Stores begin anywhere, so that they do not meet."""

    async def put(self, delivery: NewDelivery) -> PutResult:
        """See `Store.put`. All that wait share a statement, but for those of pending registrations."""
        self._check_usable()
        check_texts(delivery.registration, delivery.signature, delivery.candidate)
        size = len(delivery.body)
        self._check_room(size)
        if delivery.candidate is None:
            self._count(size)
            result = await self._puts.submit(delivery)
            if result is not None:
                return result

        async def put(db: Connection) -> PutResult:
            return await self._put_apart(db, delivery)

        return await self._counted(self._run(put, transaction=True), size)

    async def _put(self, new: Sequence[NewDelivery]) -> Sequence[PutResult | None]:
        """Put deliveries of confirmed registrations; return ``None`` for those of others."""
        with self._uncounting(len(new), sum(len(one.body) for one in new)):
            keys = [(one.registration, *_key(one), one.body) for one in new]
            ids, times, signatures, bodies = map(list, zip(*keys, strict=True))
            rows = await self._run(lambda db: db.fetch(PUT, self._now(), ids, times, signatures, bodies))
        results: list[PutResult | None] = [None] * len(new)
        for place, is_stored in rows:
            results[place - 1] = "stored" if is_stored else "duplicate"
        return results

    async def _put_apart(self, db: Connection, new: NewDelivery) -> PutResult:
        """Put one delivery as `rules` decide, while its registration is locked."""
        row = await db.first(PLACE, self._now(), new.registration)
        if row is None:
            return "refused"
        number, state, deadline, now = row
        names = await db.fetch("SELECT id FROM @secrets WHERE registration = $1", number)
        effective = effective_state(RegistrationState(state), deadline=deadline, now=now)
        initial = initial_state(effective, secrets={name for (name,) in names}, candidate=new.candidate)
        if initial is None:
            return "refused"
        if not await db.run(ADD_SEEN, *_key(new), number, now):
            return "duplicate"
        if initial is DeliveryState.QUARANTINED:
            count, size = await db.first(QUARANTINED, number)
            self._quarantine.check_room(count, size, len(new.body))
        kept = "open" if initial is DeliveryState.WAITING else initial.value
        await db.run(ADD, number, kept, now, new.candidate, new.body)
        await db.run(NOTE.format("ARRAY[$2::bigint]"), self._now(), number)
        return "stored"

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """See `Store.claim`. If the caller is cancelled, its leases are released."""
        check_integer("limit", limit)
        check_seconds("lease", lease)
        self._check_usable()
        if limit <= 0:
            return ()

        async def claim(db: Connection) -> Sequence[Lease]:
            await db.run(WAKE, self._now(), max(limit, 100))
            if ordered:
                chosen = await self._heads(db, limit, IS_HEAD + (f"AND {NOT_HALTED}" if halt else ""))
            else:
                # Half by turn, rounded up: a claim of one takes turns, and large ones take the oldest, too.
                by_turn = min((limit + 1) // 2, LOOK_AT)
                chosen = await db.fetch(CHOOSE, self._turn, by_turn, limit)
            return await self._lease(db, chosen, lease)

        claimed = self._spawn(self._run(claim, transaction=True))
        try:
            return await asyncio.shield(claimed)
        except asyncio.CancelledError:
            claimed.add_done_callback(self._give_back)
            raise

    async def _heads(self, db: Connection, limit: int, condition: str) -> Sequence[Any]:
        """Lock the registrations whose turn it is, and return what they have to claim."""
        free: dict[int, None] = {}
        number = min(2 * limit, LOOK_AT)
        for _ in range(LOOKS):
            rows = await db.fetch(LOOK.format(condition), self._turn, number)
            free |= {row["registration"]: None for row in rows if row["is_free"]}
            if free or len(rows) < number:
                break
            self._turn = rows[-1]["registration"]
            number = LOOK_AT
        if not free:
            return ()
        locked = [row["number"] for row in await db.fetch(LOCK, list(free), limit)]
        return await db.fetch(HEADS.format(condition), locked)

    async def _lease(self, db: Connection, chosen: Sequence[Any], lease: float) -> Sequence[Lease]:
        rows, self._turn = _without_alone(_in_turn(chosen, self._turn), self._turn)
        if not rows:
            return ()
        fence = random.getrandbits(62) + 1  # 0 is no fence
        leased = await db.fetch(LEASE, self._now(), [row["id"] for row in rows], lease, fence)
        found = [dict(row) for row in sorted(leased, key=lambda row: int(row["id"]))]
        return [Lease(alone=is_alone(row.pop("unanswered")), done=tuple(row.pop("done")), **row) for row in found]

    def _give_back(self, claimed: asyncio.Task[Sequence[Lease]]) -> None:
        leases = () if claimed.cancelled() or claimed.exception() else claimed.result()
        if leases:
            values = [lease.id for lease in leases], leases[0].fence
            released = self._spawn(self._run(lambda db: db.run(RELEASE, *values)))
            released.add_done_callback(lambda done: done.cancelled() or done.exception())  # if it failed, they expire

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """See `Store.extend`."""
        check_seconds("seconds", seconds)
        return await self._change(EXTEND, self._now(), lease.id, lease.fence, seconds) == 1

    async def ack(self, lease: Lease) -> bool:
        """See `Store.ack`. All that wait share a statement."""
        self._check_usable()
        return await self._acks.submit(lease)

    async def _ack(self, leases: Sequence[Lease]) -> Sequence[bool]:
        ids, fences = [lease.id for lease in leases], [lease.fence for lease in leases]
        rows = await self._run(lambda db: db.fetch(ACK, ids, fences))
        gone = {tuple(row): True for row in rows}
        return [gone.pop((lease.id, lease.fence), False) for lease in leases]

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None, done: Iterable[int] = ()) -> bool:
        """See `Store.fail`."""
        wait = None if retry_in is None else check_seconds("retry_in", retry_in)
        values = lease.id, lease.fence, readable(error), list(add_done(lease.done, done))
        if wait is None:
            return await self._change(BURY, *values) == 1
        return await self._change(RETRY, self._now(), *values, wait) == 1

    async def release(self, lease: Lease) -> bool:
        """See `Store.release`."""
        return await self._change(RELEASE, [lease.id], lease.fence) == 1

    async def deliveries(self, *, state: str, after: int = 0, limit: int = 100) -> Sequence[StoredDelivery]:
        """See `Store.deliveries`."""
        statement = f"{STORED} WHERE {IN_STATE[check_state(state)]} AND inbox.id > $2 ORDER BY inbox.id LIMIT $3"
        values = check_integer("after", after), max(check_integer("limit", limit), 0)
        rows = await self._fetch(statement, self._now(), *values, limited=True)
        return [_stored(row) for row in rows]

    async def delivery(self, id: int) -> StoredDelivery | None:
        """See `Store.delivery`."""
        check_integer("id", id)
        rows = await self._fetch(f"{STORED} WHERE inbox.id = $2", self._now(), id, limited=True)
        return _stored(rows[0]) if rows else None

    async def requeue(self, id: int) -> bool:
        """See `Store.requeue`."""
        check_integer("id", id)
        return await self._change(REQUEUE, id) == 1

    async def discard(self, id: int) -> bool:
        """See `Store.discard`."""
        check_integer("id", id)
        return await self._change(DISCARD, self._now(), id) == 1


def _key(new: NewDelivery) -> tuple[int, bytes]:
    """Return the parts of a duplicate key without the registration: the event's time, and the signature in bytes."""
    try:
        signature = bytes.fromhex(new.signature)
    except ValueError:
        signature = b""
    if signature.hex() != new.signature:  # never of Asana's; no two may become equal
        signature = hashlib.sha256(new.signature.encode()).digest()
    return event_time(new.body), signature


def _in_turn(chosen: Sequence[Any], turn: int) -> Sequence[Any]:
    """Return what was chosen by turn, from the registration after *turn* on, and then the other ones by age."""
    by_turn = [row for row in chosen if row["is_turn"]]
    others = [row for row in chosen if not row["is_turn"]]
    by_turn.sort(key=lambda row: (row["registration"] <= turn, row["registration"]))
    return by_turn + sorted(others, key=lambda row: int(row["id"]))


def _without_alone(rows: Sequence[Any], turn: int) -> tuple[Sequence[Any], int]:
    """Return the rows to claim, of those *rows* in the order of turns, and who had the last turn.

    One that must run alone goes if it is the first; else it holds up its registration, and is the first of the next
    claim.
    """
    if rows and is_alone(rows[0]["unanswered"]):
        return rows[:1], rows[0]["registration"]
    held_up: list[int] = []
    ready = []
    for row in rows:
        if is_alone(row["unanswered"]):
            held_up.append(row["registration"])
        if row["registration"] not in held_up:
            ready.append(row)
            turn = row["registration"] if row["is_turn"] else turn
    return ready, held_up[0] - 1 if held_up else turn


def _stored(row: Any) -> StoredDelivery:
    values = dict(row)
    return StoredDelivery(state=DeliveryState(values.pop("state")), done=tuple(values.pop("done")), **values)
