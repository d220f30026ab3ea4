"""What a `MemoryStore` does beyond the protocol: its limits."""

from typing import Any

import pytest

from asana_webhooks.errors import ConfigurationError, StoreFullError
from asana_webhooks.models import Secret
from asana_webhooks.store import MemoryStore, memory
from asana_webhooks.store.base import NewDelivery, candidate_id
from tests.helpers.stores import Clock

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


async def test_a_full_store_says_so() -> None:
    """Its health tells that the next delivery would be refused, and why, until there is room again."""
    store = await confirmed(MemoryStore(max_bytes=20))
    await store.put(new(1))
    assert (await store.health()).writable
    await store.put(new(2))
    health = await store.health()
    assert not health.writable
    assert health.problems == ("there is no room for another delivery: let the workers catch up, or raise max_bytes",)
    (lease,) = await store.claim(1, lease=60)
    await store.done(lease)
    health = await store.health()
    assert (health.writable, health.problems) == (True, ())


async def test_no_limit() -> None:
    """``None`` removes the limit of bytes."""
    store = await confirmed(MemoryStore(max_bytes=None))
    await store.put(new(1))
    (lease,) = await store.claim(1, lease=60)
    assert await store.done(lease)
    assert await store.put(new(1)) == "duplicate"


async def test_finished_deliveries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest finished deliveries are forgotten when there are too many."""
    monkeypatch.setattr(memory, "MAX_FINISHED", 2)
    store = await confirmed(MemoryStore())
    for number in range(3):
        await store.put(new(number))
        await store.done((await store.claim(1, lease=60))[0])
    assert [await store.put(new(number)) for number in (1, 2, 0)] == ["duplicate", "duplicate", "stored"]


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
    clock = Clock()
    store = await confirmed(MemoryStore(clock=clock, max_bytes=10))
    await store.open("pending", resource="1", ttl=60)
    await store.offer("pending", SECRET)
    await store.put(quarantined(1))
    with pytest.raises(StoreFullError, match="too large together"):
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


def test_limits_are_checked() -> None:
    """A limit that could never work is refused at once, by name."""
    wrong: list[dict[str, Any]] = [{"max_bytes": "x"}, {"max_quarantined": None}, {"max_quarantined_bytes": -1}]
    for limit in wrong:
        with pytest.raises(ConfigurationError, match=next(iter(limit))):
            MemoryStore(**limit)
