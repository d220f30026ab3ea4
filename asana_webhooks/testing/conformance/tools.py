"""What the conformance checks are made of: a clock, a runner, and short ways to say things."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import Lease, NewDelivery, Registration, Store, candidate_id, registration_id

__all__ = [
    "FORGED",
    "GID",
    "ID",
    "LEASE",
    "OTHER",
    "RESOURCE",
    "SECRET",
    "TTL",
    "SettableClock",
    "bodies_of",
    "check",
    "confirm_one",
    "expect",
    "expect_lost",
    "expect_misuse",
    "find_one",
    "lease_one",
    "lease_with_body",
    "new_delivery",
    "strange_lease",
]


ID = registration_id("endpoint-1")
OTHER = registration_id("endpoint-2")
SECRET = Secret("b537207f20cbfa02357cf448134da559e8bd39d61597dcd5631b8012eae53e81")
FORGED = Secret("0" * 64)
GID = "12345"
RESOURCE = "8675309"
TTL = 60.0
LEASE = 30.0


class SettableClock:
    """A clock that stands still until it is told to go on; calling it returns seconds since the epoch."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds since the epoch."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self.now += seconds


def check(body: Callable[..., Awaitable[None]]) -> Callable[[Any, Path], None]:
    """Make a test that pytest can run of a coroutine method that asks for an open store, and perhaps its clock."""
    asks_for = inspect.signature(body).parameters

    def test(self: Any, tmp_path: Path) -> None:
        async def run() -> None:
            clock = SettableClock()
            async with self.make_store(tmp_path, clock) as store:
                given = {"self": self, "store": store, "clock": clock}
                await body(**{name: given[name] for name in asks_for})

        asyncio.run(run())

    test.__doc__ = body.__doc__
    return test


def expect(got: object, wanted: object, promise: str) -> None:
    """Fail with both values and what was promised, unless they are equal."""
    # Not the assert statement: pytest rewrites that in test modules only, and without it the values would be missing.
    if got != wanted:
        raise AssertionError(f"{promise}: got {got!r}, wanted {wanted!r}")


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
    await store.open(id, resource=RESOURCE, ttl=TTL)
    await store.offer(id, SECRET)
    await store.confirm(id, webhook_gid=GID, secret=SECRET)


async def lease_one(store: Store, number: int = 1) -> Lease:
    """Put a delivery and lease it."""
    await store.put(new_delivery(number))
    (lease,) = await store.claim(1, lease=LEASE)
    return lease


async def find_one(store: Store) -> Registration:
    """Find the registration most checks are about."""
    found = await store.find(ID)
    if found is None:
        raise AssertionError("the registration is not found")
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
    expect(lease.body, body, "what can be claimed")
    return lease


async def expect_lost(store: Store, lease: Lease) -> None:
    """Fail unless nothing said with *lease* counts or changes anything."""
    before = await store.health()
    expect(await store.extend(lease, seconds=LEASE), False, "extending a lost lease")
    expect(await store.done(lease), False, "finishing with a lost lease")
    expect(await store.fail(lease, error="", retry_in=0), False, "failing with a lost lease")
    expect(await store.fail(lease, error="", retry_in=None), False, "failing for good with a lost lease")
    expect(await store.release(lease), False, "releasing a lost lease")
    expect(await store.health(), before, "what a lost lease changed")
