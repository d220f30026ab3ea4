"""What a call costs a `SQLiteStore` does not grow with what is in it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import define

from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.base import MAX_COUNT, DeliveryState, RegistrationState
from asana_webhooks.store.sqlite.file import sqlite3
from tests.helpers.stores import Clock
from tests.store.sqlite_help import SECRET, confirmed, in_reader, in_writer, new, opened

T = TypeVar("T")

REGISTRATIONS = """
    INSERT INTO registrations (number, id, resource, label, public_url, state, opened_at, deadline, webhook_gid)
    SELECT n + 1, 'other' || n, '1', n, '', '{}', :now - 1e6, :now + 1e6, n FROM many
"""
SECRETS = "INSERT INTO secrets (registration, id, secret, key_id) SELECT n + 1, n, x'00', 'k' FROM many"
DELIVERIES = """
    INSERT INTO inbox (id, registration, state, received_at, turn, since, due_at, fence)
    SELECT {}, {}, '{}', :now, {}, {} FROM many
"""
OPEN = "NULL, NULL, 0"
DELAYED = ":now, :now + 1e6, 0"
LEASED = ":now, :now + 1e6, 7"
CONFIRMED = REGISTRATIONS.format("confirmed")
BEHIND = DELIVERIES.format(":number + n", "n + 1", "open", "NULL", OPEN)

KINDS = {
    "keys": ["INSERT INTO seen SELECT :now * 1000 + n, x'00', 1, :now FROM many"],
    "waiting": [DELIVERIES.format("n", "1", "open", "iif(n = 1, 1, NULL)", OPEN)],
    "waiting apart": [CONFIRMED, DELIVERIES.format("n", "n + 1", "open", "n", OPEN)],
    "delayed": [CONFIRMED, DELIVERIES.format("n", "n + 1", "open", "n", DELAYED)],
    "delayed, others behind": [CONFIRMED, DELIVERIES.format("n", "n + 1", "open", "n", DELAYED), BEHIND],
    "leased, others behind": [CONFIRMED, DELIVERIES.format("n", "n + 1", "open", "n", LEASED), BEHIND],
    "dead": [DELIVERIES.format("n", "1", "dead", "NULL", OPEN)],
    "dead, others behind": [
        CONFIRMED,
        DELIVERIES.format("n", "n + 1", "dead", "NULL", OPEN),
        DELIVERIES.format(":number + n", "n + 1", "open", "n", OPEN),
    ],
    "quarantined": [REGISTRATIONS.format("pending"), DELIVERIES.format("n", "n + 1", "quarantined", "NULL", OPEN)],
    "confirmed": [CONFIRMED, SECRETS],
    "pending": [REGISTRATIONS.format("pending"), SECRETS],
    "closed": [REGISTRATIONS.format("closed")],
}
"""Rows to add, as statements over the numbers from 1. Registration 1 is there already."""


def fill(connection: sqlite3.Connection, *, kind: str, number: int, now: float) -> None:
    """Add so many rows of a kind."""
    many = "WITH RECURSIVE many (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < :number)"
    values = {"number": number, "now": now}
    for statement in KINDS[kind]:
        connection.execute(f"{many} {statement}", values)
    connection.execute("INSERT INTO bodies SELECT id, x'00' FROM inbox")


@define
class Meter:
    """Counts the steps of SQLite's programs in the transaction that needs most of them."""

    now: int = 0
    most: int = 0

    def install(self, connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(self._step, 1)
        connection.set_trace_callback(self._trace)

    def _step(self) -> None:
        self.now += 1

    def _trace(self, statement: str) -> None:
        if statement.startswith("BEGIN"):
            self.most, self.now = max(self.most, self.now), 0

    async def measure(self, call: Awaitable[T]) -> tuple[T, int]:
        self.now = self.most = 0
        return await call, max(self.most, self.now)


LISTED: list[dict[str, Any]] = [
    {"label": "r"},
    {"resource": "1", "label": "r"},
    {"resource": "1", "label": "r", "state": RegistrationState.CONFIRMED},
    {"resource": "no such resource"},
    {"webhook_gid": "no such webhook"},
]
Calls = Callable[[SQLiteStore, Meter], AsyncIterator[tuple[str, int]]]


async def costs(store: SQLiteStore, meter: Meter) -> AsyncIterator[tuple[str, int]]:
    """Make each call once; yield the steps it took."""
    measure = meter.measure
    yield "first claim", (await measure(store.claim(0, lease=60)))[1]
    yield "idle claim", (await measure(store.claim(0, lease=60)))[1]
    puts = [new(number) for number in range(50)]
    yield "put", (await measure(asyncio.gather(*(store.put(one) for one in puts))))[1]
    yield "duplicates", (await measure(asyncio.gather(*(store.put(one) for one in puts))))[1]
    first, steps = await measure(store.claim(5, lease=60, ordered=True))
    yield "ordered claim", steps
    yield "halted claim", (await measure(store.claim(5, lease=60, ordered=True, halt=True)))[1]
    (lease, *leases), steps = await measure(store.claim(10, lease=60))
    yield "claim", steps
    yield "extend", (await measure(store.extend(lease, seconds=60)))[1]
    yield "retry", (await measure(store.fail(lease, error="", retry_in=60)))[1]
    yield "bury", (await measure(store.fail(first[0], error="", retry_in=None)))[1]
    yield "requeue", (await measure(store.requeue(first[0].id)))[1]
    yield "discard", (await measure(store.discard(lease.id)))[1]
    yield "release", (await measure(store.release(leases.pop())))[1]
    yield "ack", (await measure(asyncio.gather(*(store.ack(one) for one in leases))))[1]
    yield "heartbeat", (await measure(store.record_heartbeat("r")))[1]
    yield "find", (await measure(store.find_registration("r")))[1]
    yield "open", (await measure(opened(store, "p")))[1]
    yield "candidate", (await measure(store.add_candidate("p", SECRET)))[1]
    yield "confirm", (await measure(store.confirm_registration("p", webhook_gid="p", secret=SECRET)))[1]
    yield "close", (await measure(store.close_registration("p")))[1]
    yield "expire", (await measure(store.expire_registrations()))[1]
    yield "list", (await measure(store.list_registrations(limit=10)))[1]
    for given in LISTED:
        yield f"list by {' and '.join(given)}", (await measure(store.list_registrations(**given, limit=10)))[1]
    yield "dead letters", (await measure(store.deliveries(state=DeliveryState.DEAD, limit=10)))[1]


async def bounded_costs(store: SQLiteStore, meter: Meter) -> AsyncIterator[tuple[str, int]]:
    """Do the same for calls that look at many rows, up to a bound."""
    yield "purge", (await meter.measure(store.purge(older_than=60, dead=True)))[1]
    yield "health", (await meter.measure(store.health()))[1]


EXCEPT = {("dead, others behind", "halted claim")}
"""A claim that dead letters halt looks at each registration that is halted."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("make_calls", "few", "many"), [(costs, 100, 3_000), (bounded_costs, MAX_COUNT, 2 * MAX_COUNT)]
)
async def test_costs_do_not_grow(tmp_path: Path, make_calls: Calls, few: int, many: int, kind: str) -> None:
    """No transaction takes many more steps beside many rows of a kind than beside few."""
    found: list[dict[str, int]] = []
    for number in (few, many):
        clock, meter = Clock(), Meter()
        async with SQLiteStore(tmp_path / f"{number}.db", clock=clock) as store:
            await confirmed(store)
            await in_writer(store, partial(fill, kind=kind, number=number, now=clock.now))
            for use in (in_writer, in_reader):
                await use(store, meter.install)
            found.append({name: steps async for name, steps in make_calls(store, meter)})
    beside_few, beside_many = found
    grown = {name: (beside_few[name], steps) for name, steps in beside_many.items() if steps > 1.2 * beside_few[name]}
    assert {name: steps for name, steps in grown.items() if (kind, name) not in EXCEPT} == {}


async def test_counts_that_have_ended(tmp_path: Path) -> None:
    """A count that has reached its end stays there, whatever else the same rows hold."""
    clock = Clock()
    async with SQLiteStore(tmp_path / "store.db", clock=clock) as store:
        await confirmed(store)
        await in_writer(store, partial(fill, kind="delayed", number=MAX_COUNT + 1, now=clock.now))
        await store.put(new(1))
        assert len(await store.claim(1, lease=60)) == 1
        health = await store.health()
        assert (health.waiting, health.leased) == (MAX_COUNT, 1)


async def test_a_claim_wakes_some_at_a_time(tmp_path: Path) -> None:
    """When many delays end at once, one claim does not hold up the puts; the next ones get all of them."""
    found = []
    for number in (1_000, 3_000):
        clock, meter = Clock(), Meter()
        async with SQLiteStore(tmp_path / f"{number}.db", clock=clock) as store:
            await confirmed(store)
            await in_writer(store, partial(fill, kind="delayed", number=number, now=clock.now))
            clock.advance(1e6)
            await in_writer(store, meter.install)
            first, steps = await meter.measure(store.claim(10, lease=60))
            found.append(steps)
            claimed = list(first)
            while more := await store.claim(500, lease=60):
                claimed += more
            assert len({lease.id for lease in claimed}) == number
    beside_few, beside_many = found
    assert beside_many < 1.5 * beside_few
