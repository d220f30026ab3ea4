"""What a store promises about opening and closing."""

import asyncio
from collections.abc import Callable

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store.base import DeliveryState, Store
from tests.helpers.stores import Clock
from tests.store.contract.tools import (
    ANSWERS,
    ID,
    LEASE,
    OTHER,
    SECRET,
    adopt_one,
    confirm_one,
    expect_lost,
    find_one,
    lease_one,
    new_delivery,
    open_one,
    strange_lease,
)


async def test_it_needs_no_async_with(make_store: Callable[[], Store]) -> None:
    """The first call opens the store; it can be closed twice, and unused."""
    for used in (False, True):
        store = make_store()
        if used:
            assert await store.find_registration(ID) is None
        await store.aclose()
        await store.aclose()


async def test_a_closed_store_is_of_no_use(store: Store) -> None:
    """After `aclose` every call is a mistake of the caller."""
    await confirm_one(store)
    await store.aclose()
    outcomes = await asyncio.gather(
        open_one(store, OTHER),
        adopt_one(store, OTHER),
        store.add_candidate(ID, SECRET),
        store.confirm_registration(ID, webhook_gid="1", secret=SECRET),
        store.close_registration(ID),
        store.find_registration(ID),
        store.list_registrations(),
        store.expire_registrations(),
        store.record_heartbeat(ID),
        store.retire_registration(ID, after=1),
        store.put(new_delivery(1)),
        store.claim(1, lease=LEASE),
        *(answer(store, strange_lease()) for answer in ANSWERS.values()),
        store.health(),
        store.deliveries(state=DeliveryState.DEAD),
        store.delivery(1),
        store.requeue(1),
        store.discard(1),
        store.purge(older_than=0),
        store.__aenter__(),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [ConfigurationError] * len(outcomes)


async def test_everything_outlives_the_store(make_durable: Callable[[], Store], clock: Clock) -> None:
    """Another store on the same place knows the registrations and deliveries, and gives no id out again."""
    async with make_durable() as store:
        await confirm_one(store)
        await store.fail(await lease_one(store, 1), error="bad", retry_in=None, done=[1])
        last = await lease_one(store, 2)
        await store.ack(last)
        before = await find_one(store), await store.deliveries(state=DeliveryState.DEAD)
    clock.advance(3600)
    async with make_durable() as store:
        assert (await find_one(store), await store.deliveries(state=DeliveryState.DEAD)) == before, "what was kept"
        assert await store.put(new_delivery(2)) == "duplicate", "one that is done"
        await store.purge(older_than=0)
        assert (await lease_one(store, 3)).id > last.id, "a new id"
        await expect_lost(store, last)
