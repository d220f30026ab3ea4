"""The suite people inherit from: all promises together, and those about opening and closing."""

import asyncio
from pathlib import Path

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store.base import Store
from asana_webhooks.testing.conformance.inbox import InboxPromises
from asana_webhooks.testing.conformance.registrations import RegistrationPromises
from asana_webhooks.testing.conformance.tools import (
    GID,
    ID,
    LEASE,
    OTHER,
    RESOURCE,
    SECRET,
    TTL,
    SettableClock,
    check,
    confirm_one,
    expect,
    new_delivery,
    strange_lease,
)
from asana_webhooks.testing.conformance.upkeep import UpkeepPromises

__all__ = ["StoreConformance"]


class StoreConformance(RegistrationPromises, InboxPromises, UpkeepPromises):
    """Inherit from it, override `make_store`, and pytest runs one test for each promise."""

    def make_store(self, tmp_path: Path, clock: SettableClock) -> Store:
        """Return a new and empty store; override this.

        Args:
            tmp_path: a directory of this test's own.
            clock: to be called for the time in seconds since the epoch.
        """
        raise NotImplementedError

    # Opening and closing

    def test_it_needs_no_async_with(self, tmp_path: Path) -> None:
        """The first call opens the store; it can be closed twice, and unused."""

        async def run() -> None:
            for used in (False, True):
                store = self.make_store(tmp_path, SettableClock())
                if used:
                    expect(await store.find(ID), None, "an unknown registration")
                await store.aclose()
                await store.aclose()

        asyncio.run(run())

    @check
    async def test_a_closed_store_is_of_no_use(self, store: Store) -> None:
        """After `aclose` every call is a mistake of the caller."""
        await confirm_one(store)
        await store.aclose()
        lease = strange_lease()
        outcomes = await asyncio.gather(
            store.open(OTHER, resource=RESOURCE, ttl=TTL),
            store.offer(ID, SECRET),
            store.confirm(ID, webhook_gid=GID, secret=SECRET),
            store.close(ID),
            store.find(ID),
            store.sweep(),
            store.heartbeat(ID),
            store.put(new_delivery(1)),
            store.claim(1, lease=LEASE),
            store.extend(lease, seconds=LEASE),
            store.done(lease),
            store.fail(lease, error="", retry_in=None),
            store.release(lease),
            store.health(),
            store.dead_letters(),
            store.requeue(1),
            store.purge(older_than=0),
            store.__aenter__(),
            return_exceptions=True,
        )
        refused = [isinstance(outcome, ConfigurationError) for outcome in outcomes]
        expect(refused, [True] * len(outcomes), "which calls are refused")
