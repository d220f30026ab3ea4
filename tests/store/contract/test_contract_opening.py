"""What a store promises about opening and closing."""

import asyncio
from collections.abc import Callable

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store.base import Store
from tests.store.contract.tools import (
    GID,
    ID,
    LEASE,
    OTHER,
    RESOURCE,
    SECRET,
    TTL,
    confirm_one,
    new_delivery,
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
    lease = strange_lease()
    outcomes = await asyncio.gather(
        store.open_registration(OTHER, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL),
        store.add_candidate(ID, SECRET),
        store.confirm_registration(ID, webhook_gid=GID, secret=SECRET),
        store.close_registration(ID),
        store.find_registration(ID),
        store.expire_registrations(),
        store.record_heartbeat(ID),
        store.put(new_delivery(1)),
        store.claim(1, lease=LEASE),
        store.extend(lease, seconds=LEASE),
        store.ack(lease),
        store.fail(lease, error="", retry_in=None),
        store.release(lease),
        store.health(),
        store.deliveries(state="dead"),
        store.requeue(1),
        store.purge(older_than=0),
        store.__aenter__(),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [ConfigurationError] * len(outcomes)
