"""Races that a store with one writer cannot have, each held still at the moment that matters.

A connection of the test's own holds a lock that the first call needs, so that it stops half way; then the second one
starts. Each of these fails with a statement that looks right.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from yarl import URL

from asana_webhooks.store import PostgresStore
from tests.helpers.postgres import run_sql
from tests.helpers.raw import later
from tests.helpers.stores import Clock
from tests.store.contract.tools import (
    GID,
    ID,
    LEASE,
    OTHER,
    SECRET,
    TTL,
    adopt_one,
    bodies,
    bodies_of,
    confirm_one,
    new_delivery,
    open_one,
    put,
)

WAITERS = "SELECT count(*) FROM pg_locks WHERE NOT granted"
SLOW_CLAIMS = (
    """
    CREATE FUNCTION asana_webhooks.wait() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END'
    """,
    """
    CREATE TRIGGER wait BEFORE UPDATE ON asana_webhooks.inbox
    FOR EACH ROW WHEN (NEW.fence > 0) EXECUTE FUNCTION asana_webhooks.wait()
    """,
)
KEY = "INSERT INTO asana_webhooks.seen SELECT 0, '\\x{:064x}', number, 0 FROM asana_webhooks.registrations"
EARLIER = "INSERT INTO asana_webhooks.inbox (registration, received_at, body) VALUES (1, 0, 'body 1')"
Stores = tuple[PostgresStore, PostgresStore]


@pytest.fixture(name="clock")
def _clock() -> Clock:
    """The time of both stores."""
    return Clock()


@pytest.fixture(name="stores")
async def _stores(postgres_url: str, clock: Clock) -> AsyncIterator[Stores]:
    """Two machines' stores on one database, where transactions are isolated more than the store needs."""
    url = str(URL(postgres_url).update_query(default_transaction_isolation="repeatable read"))
    async with (
        asyncpg.create_pool(url, min_size=0) as pool,
        PostgresStore(url, clock=clock) as one,
        PostgresStore(pool, clock=clock) as other,
    ):
        yield one, other


@asynccontextmanager
async def holding(url: str, statement: str) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Run a statement in an open transaction; yield how to commit it. It is undone at the end otherwise."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"BEGIN; {statement}")
        yield lambda: connection.execute("COMMIT")
    finally:
        await connection.close()


async def stopped(url: str, *calls: "asyncio.Task[Any]") -> None:
    """Wait until each of these calls waits for a lock, or is done."""
    async with asyncio.timeout(20):
        while (await run_sql(url, WAITERS))[0][0] + sum(call.done() for call in calls) < len(calls):
            await later(0.01)


async def test_no_quarantined_delivery_is_lost(stores: Stores, postgres_url: str) -> None:
    """A delivery that is put into quarantine while the 201 is confirmed comes out of it."""
    one, other = stores
    await open_one(one)
    await one.add_candidate(ID, SECRET)
    async with holding(postgres_url, KEY.format(1)):
        putting = asyncio.create_task(one.put(new_delivery(1, secret=SECRET)))
        await stopped(postgres_url, putting)  # it has seen that the registration is pending
        confirming = asyncio.create_task(other.confirm_registration(ID, webhook_gid=GID, secret=SECRET))
        await stopped(postgres_url, putting, confirming)
    assert (await putting, await confirming) == ("stored", True)
    assert bodies_of(await other.claim(9, lease=LEASE)) == bodies(1)


@pytest.mark.parametrize("second", [open_one, adopt_one])
async def test_one_of_two_opens(
    stores: Stores, postgres_url: str, second: Callable[..., Coroutine[Any, Any, bool]]
) -> None:
    """Two that look for a live registration at the same moment do not both add one."""
    one, other = stores
    async with holding(postgres_url, "LOCK TABLE asana_webhooks.registrations IN SHARE MODE"):  # they can look, not add
        calls = [asyncio.create_task(call) for call in (open_one(one, ID, label="a"), second(other, OTHER, label="a"))]
        await stopped(postgres_url, *calls)
    assert sorted([await call for call in calls]) == [False, True]


async def test_a_late_confirmation_and_a_new_one(stores: Stores, postgres_url: str, clock: Clock) -> None:
    """None is opened beside one whose confirmation began within its deadline, and ends after it."""
    one, other = stores
    await open_one(one, ID, label="a")
    await one.add_candidate(ID, SECRET)
    async with holding(postgres_url, "LOCK TABLE asana_webhooks.inbox IN SHARE MODE"):
        confirming = asyncio.create_task(one.confirm_registration(ID, webhook_gid=GID, secret=SECRET))
        await stopped(postgres_url, confirming)
        clock.advance(TTL)
        opening = asyncio.create_task(open_one(other, OTHER, label="a"))
        await stopped(postgres_url, confirming, opening)
    assert (await confirming, await opening) == (True, False)


async def test_a_handshake_that_ends_after_the_deadline(stores: Stores, postgres_url: str, clock: Clock) -> None:
    """Whoever expires a registration learns of a candidate that was added within the deadline, and is committed now."""
    one, other = stores
    await open_one(one)
    async with holding(postgres_url, "LOCK TABLE asana_webhooks.secrets IN SHARE MODE"):
        adding = asyncio.create_task(one.add_candidate(ID, SECRET))
        await stopped(postgres_url, adding)
        clock.advance(TTL)
        expiring = asyncio.create_task(other.expire_registrations())
        await stopped(postgres_url, adding, expiring)
    (expired,) = await expiring
    assert (await adding, expired.echoed, expired.candidates) == (True, True, (SECRET,))


async def test_order_beside_a_put_that_is_not_committed(stores: Stores, postgres_url: str) -> None:
    """With *ordered* an earlier delivery that is committed later waits for the one that was claimed before."""
    one, other = stores
    await confirm_one(one)
    async with holding(postgres_url, EARLIER) as commit:
        await put(one, 2)
        (second,) = await one.claim(9, lease=LEASE, ordered=True)
        await commit()
    assert list(await other.claim(9, lease=LEASE, ordered=True)) == [], "beside the later one"
    await one.ack(second)
    assert bodies_of(await other.claim(9, lease=LEASE, ordered=True)) == bodies(1), "afterwards"


async def test_two_claim_in_order_at_once(stores: Stores, postgres_url: str) -> None:
    """With *ordered* two that claim at the same moment do not both get one of the same webhook."""
    one, other = stores
    await confirm_one(one)
    await run_sql(postgres_url, *SLOW_CLAIMS)
    async with holding(postgres_url, "SELECT pg_advisory_xact_lock(7)"):
        async with holding(postgres_url, EARLIER) as commit:
            await put(one, 2)
            first = asyncio.create_task(one.claim(9, lease=LEASE, ordered=True))
            await stopped(postgres_url, first)  # it has chosen the second delivery
            await commit()
        second = asyncio.create_task(other.claim(9, lease=LEASE, ordered=True))
        await stopped(postgres_url, first, second)
    assert (bodies_of(await first), bodies_of(await second)) == (bodies(2), [])


async def test_a_closed_webhook_is_not_forgotten_under_a_put(stores: Stores, postgres_url: str, clock: Clock) -> None:
    """A delivery that is put while its webhook is closed and purged is handled like any other."""
    one, other = stores
    await adopt_one(one)
    clock.advance(1)
    async with holding(postgres_url, KEY.format(1)):
        putting = asyncio.create_task(one.put(new_delivery(1)))
        await stopped(postgres_url, putting)  # it has seen that the registration is confirmed
        await other.close_registration(ID)
        await other.purge(older_than=0)
    assert await putting == "stored"
    assert bodies_of(await other.claim(9, lease=LEASE)) == bodies(1)
