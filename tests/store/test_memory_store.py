"""What a `MemoryStore` does beyond the protocol: its limits."""

from typing import Any

import pytest

from asana_webhooks.errors import ConfigurationError, StoreFullError
from asana_webhooks.models import Secret
from asana_webhooks.store import MemoryStore, NewDelivery, candidate_id
from asana_webhooks.testing.conformance import SettableClock

SECRET = Secret("d7c5b0a1f3e24986a0b1c2d3e4f50617")


def new(number: int, size: int = 10) -> NewDelivery:
    return NewDelivery(registration="r", signature=f"{number:064x}", body=b"x" * size)


def quarantined(number: int) -> NewDelivery:
    return NewDelivery(
        registration="pending", signature=f"{number:064x}", body=b"x" * 10, candidate=candidate_id(SECRET)
    )


async def confirmed(store: MemoryStore) -> MemoryStore:
    await store.open("r", resource="1", ttl=60)
    await store.offer("r", SECRET)
    await store.confirm("r", webhook_gid="2", secret=SECRET)
    return store


async def test_max_deliveries() -> None:
    """A full store takes nothing new, still knows duplicates, and has room again when one is done."""
    store = await confirmed(MemoryStore(max_deliveries=2))
    await store.put(new(1))
    await store.put(new(2))
    with pytest.raises(StoreFullError, match="too many deliveries"):
        await store.put(new(3))
    assert await store.put(new(2)) == "duplicate"
    (lease,) = await store.claim(1, lease=60)
    await store.done(lease)
    assert await store.put(new(3)) == "stored"


async def test_max_bytes() -> None:
    """Bodies count together, until they are done."""
    store = await confirmed(MemoryStore(max_bytes=100))
    await store.put(new(1, 60))
    with pytest.raises(StoreFullError, match="too large together"):
        await store.put(new(2, 41))
    with pytest.raises(StoreFullError, match="larger than max_bytes"):
        await store.put(new(2, 101))
    await store.put(new(2, 40))
    (lease,) = await store.claim(1, lease=60)
    await store.done(lease)
    assert await store.put(new(3, 60)) == "stored"


@pytest.mark.parametrize(
    ("store", "name"),
    [(MemoryStore(max_deliveries=2), "max_deliveries"), (MemoryStore(max_bytes=20), "max_bytes")],
    ids=["deliveries", "bytes"],
)
async def test_a_full_store_says_so(store: MemoryStore, name: str) -> None:
    """Its health tells that the next delivery would be refused, and by which limit, until there is room again."""
    await confirmed(store)
    await store.put(new(1))
    assert (await store.health()).writable
    await store.put(new(2))
    health = await store.health()
    assert not health.writable
    assert health.problems == (f"no delivery more {TELLS[name]}: let the workers catch up, or raise {name}",)
    (lease,) = await store.claim(1, lease=60)
    await store.done(lease)
    health = await store.health()
    assert (health.writable, health.problems) == (True, ())


TELLS = {"max_deliveries": "may wait", "max_bytes": "has room"}


async def test_no_limits() -> None:
    """``None`` removes a limit."""
    store = await confirmed(MemoryStore(max_deliveries=None, max_bytes=None, max_finished=None))
    await store.put(new(1))
    (lease,) = await store.claim(1, lease=60)
    assert await store.done(lease)
    assert await store.put(new(1)) == "duplicate"


async def test_max_finished() -> None:
    """The oldest finished deliveries are forgotten when there are too many."""
    store = await confirmed(MemoryStore(max_finished=2))
    for number in range(3):
        await store.put(new(number))
        await store.done((await store.claim(1, lease=60))[0])
    assert await store.put(new(1)) == "duplicate"
    assert await store.put(new(2)) == "duplicate"
    assert await store.put(new(0)) == "stored"


@pytest.mark.parametrize(
    "store", [MemoryStore(max_quarantined=2), MemoryStore(max_quarantined_bytes=20)], ids=["count", "bytes"]
)
async def test_the_quarantine_is_bounded(store: MemoryStore) -> None:
    """A pending registration holds only so much, and other registrations do not suffer from it."""
    await confirmed(store)
    await store.open("pending", resource="1", ttl=60)
    await store.offer("pending", SECRET)
    await store.put(quarantined(1))
    await store.put(quarantined(2))
    with pytest.raises(StoreFullError, match="in quarantine"):
        await store.put(quarantined(3))
    assert await store.put(quarantined(2)) == "duplicate"
    assert await store.put(new(4)) == "stored"
    await store.close("pending")
    assert len(await store.claim(9, lease=60)) == 1


@pytest.mark.parametrize("end", ["close", "sweep"])
async def test_an_ended_registration_makes_room(end: str) -> None:
    """What a registration had in quarantine is gone with it."""
    clock = SettableClock()
    store = await confirmed(MemoryStore(clock=clock, max_deliveries=1))
    await store.open("pending", resource="1", ttl=60)
    await store.offer("pending", SECRET)
    await store.put(quarantined(1))
    with pytest.raises(StoreFullError, match="too many deliveries"):
        await store.put(new(2))
    clock.advance(60)
    if end == "close":
        await store.close("pending")
    else:
        await store.sweep()
    assert await store.put(new(2)) == "stored"


async def test_repr() -> None:
    """A store shows how much it holds, and nothing of it."""
    store = await confirmed(MemoryStore())
    await store.put(new(1))
    assert repr(store) == "<MemoryStore registrations=1 deliveries=1>"


@pytest.mark.parametrize(
    "limit",
    [
        {"max_deliveries": -1},
        {"max_bytes": "x"},
        {"max_finished": 1.5},
        {"max_quarantined": None},
        {"max_quarantined_bytes": -1},
    ],
    ids=str,
)
def test_limits_are_checked(limit: dict[str, Any]) -> None:
    """A limit that could never work is refused at once."""
    with pytest.raises(ConfigurationError, match=next(iter(limit))):
        MemoryStore(**limit)
