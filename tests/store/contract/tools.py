"""What the contract's tests are made of: names, and short ways to say things."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import (
    Lease,
    NewDelivery,
    Registration,
    Store,
    StoredDelivery,
    candidate_id,
    registration_id,
)

ID = registration_id("endpoint-1")
OTHER = registration_id("endpoint-2")
THIRD = registration_id("endpoint-3")
SECRET = Secret("b537207f20cbfa02357cf448134da559e8bd39d61597dcd5631b8012eae53e81")
FORGED = Secret("0" * 64)
RESOURCE = "8675309"
URL = "https://example.com/asana"
TTL = 60.0
LEASE = 30.0


async def expect_misuse(call: Awaitable[Any], promise: str) -> None:
    """Fail unless the call is refused as a mistake of the caller."""
    try:
        await call
    except ConfigurationError:
        return
    raise AssertionError(f"{promise}: no ConfigurationError was raised")


# Registrations


def gid_of(id: str) -> str:
    """Return the gid of the webhook that belongs to this registration."""
    return f"webhook {id[:8]}"


GID = gid_of(ID)


async def open_one(store: Store, id: str = ID, *, label: str | None = None, **given: Any) -> bool:
    """Open a registration; without a label it has one of its own."""
    options: dict[str, Any] = {"resource": RESOURCE, "public_url": URL, "ttl": TTL} | given
    return await store.open_registration(id, label=id if label is None else label, **options)


async def confirm_one(store: Store, id: str = ID, *, label: str | None = None, **given: Any) -> None:
    """Take a registration all the way to confirmed."""
    assert await open_one(store, id, label=label, **given) is True, "opening"
    assert await store.add_candidate(id, SECRET) is True, "adding the secret"
    assert await store.confirm_registration(id, webhook_gid=gid_of(id), secret=SECRET) is True, "confirming"


async def adopt_one(store: Store, id: str = ID, *, label: str | None = None, **given: Any) -> bool:
    """Adopt a webhook; without a label its registration has one of its own."""
    options: dict[str, Any] = {
        "resource": RESOURCE,
        "public_url": URL,
        "webhook_gid": gid_of(id),
        "secret": SECRET,
    } | given
    return await store.adopt_registration(id, label=id if label is None else label, **options)


async def find_one(store: Store, id: str = ID) -> Registration:
    """Find a registration that must be there."""
    found = await store.find_registration(id)
    assert found is not None, "a known registration"
    return found


# Deliveries


def new_delivery(
    number: int, *, registration: str = ID, secret: Secret | None = None, at: float | None = None
) -> NewDelivery:
    """Return a delivery, told from others by its number: with *secret* for the quarantine, with an event of then."""
    body = b"body %d" % number
    if at is not None:
        body = b'{"events":[{"created_at":"%s"}]}' % datetime.fromtimestamp(at, UTC).isoformat().encode()
    candidate = None if secret is None else candidate_id(secret)
    return NewDelivery(registration=registration, signature=f"{number:064x}", body=body, candidate=candidate)


async def put(store: Store, *numbers: int, registration: str = ID) -> None:
    """Store new deliveries, one after the other."""
    for number in numbers:
        assert await store.put(new_delivery(number, registration=registration)) == "stored", "a new delivery"


async def put_many(store: Store, numbers: range, registration: str = ID) -> None:
    """Store many new deliveries, several hundred at once."""
    for start in range(0, len(numbers), 500):
        some = [new_delivery(number, registration=registration) for number in numbers[start : start + 500]]
        assert await asyncio.gather(*map(store.put, some)) == ["stored"] * len(some), "new deliveries"


async def claim_one(store: Store, limit: int = 1, **options: Any) -> Lease:
    """Claim the one delivery that can be claimed now."""
    claimed = await store.claim(limit, lease=LEASE, **options)
    assert len(claimed) == 1, "a claim of one"
    return claimed[0]


async def lease_one(store: Store, number: int = 1, registration: str = ID) -> Lease:
    """Put a delivery and lease it."""
    await put(store, number, registration=registration)
    return await claim_one(store)


def bodies_of(some: Sequence[Lease] | Sequence[StoredDelivery]) -> list[bytes]:
    """Return their bodies, in their order."""
    return [one.body for one in some]


def bodies(*numbers: int) -> list[bytes]:
    """Return the bodies of deliveries with these numbers."""
    return [b"body %d" % number for number in numbers]


ANSWERS: dict[str, Callable[[Store, Lease], Awaitable[bool]]] = {
    "extend": lambda store, lease: store.extend(lease, seconds=LEASE),
    "ack": lambda store, lease: store.ack(lease),
    "release": lambda store, lease: store.release(lease),
    "retry": lambda store, lease: store.fail(lease, error="", retry_in=0),
    "bury": lambda store, lease: store.fail(lease, error="", retry_in=None),
}
"""Everything that a worker can say with a lease."""


async def expect_lost(store: Store, lease: Lease) -> None:
    """Fail unless nothing said with *lease* counts or changes anything."""
    before = await store.delivery(lease.id), await store.health()
    for name, answer in ANSWERS.items():
        assert await answer(store, lease) is False, f"{name} with a lost lease"
    assert (await store.delivery(lease.id), await store.health()) == before, "what a lost lease changed"


def strange_lease() -> Lease:
    """Return a lease no store gave."""
    rest: dict[str, Any] = {"webhook_gid": None, "resource": RESOURCE, "received_at": 0, "expires_at": 0, "body": b""}
    return Lease(id=1, fence=1, attempt=1, registration=ID, **rest)
