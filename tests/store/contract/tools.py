"""What the contract's tests are made of: names, and short ways to say things."""

from collections.abc import Awaitable, Sequence
from typing import Any

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import Lease, NewDelivery, Registration, Store, candidate_id, registration_id

ID = registration_id("endpoint-1")
OTHER = registration_id("endpoint-2")
SECRET = Secret("b537207f20cbfa02357cf448134da559e8bd39d61597dcd5631b8012eae53e81")
FORGED = Secret("0" * 64)
GID = "12345"
RESOURCE = "8675309"
TTL = 60.0
LEASE = 30.0


async def expect_misuse(call: Awaitable[Any], promise: str) -> None:
    """Fail unless the call is refused as a mistake of the caller."""
    try:
        await call
    except ConfigurationError:
        return
    raise AssertionError(f"{promise}: no ConfigurationError was raised")


def new_delivery(number: int, *, registration: str = ID, secret: Secret | None = None) -> NewDelivery:
    """Return a delivery, told from others by its number; with *secret*, one for the quarantine."""
    return NewDelivery(
        registration=registration,
        signature=f"{number:064x}",
        body=b"body %d" % number,
        candidate=None if secret is None else candidate_id(secret),
    )


def bodies_of(held: Sequence[Lease]) -> list[bytes]:
    """Return what was leased."""
    return [lease.body for lease in held]


async def confirm_one(store: Store, id: str = ID) -> None:
    """Take a registration all the way to confirmed."""
    await store.open_registration(id, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(id, SECRET)
    await store.confirm_registration(id, webhook_gid=GID, secret=SECRET)


async def lease_one(store: Store, number: int = 1) -> Lease:
    """Put a delivery and lease it."""
    await store.put(new_delivery(number))
    (lease,) = await store.claim(1, lease=LEASE)
    return lease


async def find_one(store: Store) -> Registration:
    """Find the registration most checks are about."""
    found = await store.find_registration(ID)
    assert found is not None
    return found


def strange_lease() -> Lease:
    """Return a lease no store gave."""
    return Lease(
        id=1,
        fence=1,
        attempt=1,
        registration=ID,
        webhook_gid=None,
        resource=RESOURCE,
        received_at=0,
        expires_at=0,
        body=b"",
    )


async def lease_with_body(store: Store, body: bytes) -> Lease:
    """Lease the one delivery there is, and check that it is this one."""
    (lease,) = await store.claim(1, lease=LEASE)
    assert lease.body == body
    return lease


async def expect_lost(store: Store, lease: Lease) -> None:
    """Fail unless nothing said with *lease* counts or changes anything."""
    before = await store.health()
    assert await store.extend(lease, seconds=LEASE) is False, "extending a lost lease"
    assert await store.ack(lease) is False, "finishing with a lost lease"
    assert await store.fail(lease, error="", retry_in=0) is False, "failing with a lost lease"
    assert await store.fail(lease, error="", retry_in=None) is False, "failing for good with a lost lease"
    assert await store.release(lease) is False, "releasing a lost lease"
    assert await store.health() == before, "what a lost lease changed"
