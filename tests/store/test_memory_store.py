"""What a `MemoryStore` does beyond the protocol."""

import pytest

from asana_webhooks.errors import StoreFullError
from asana_webhooks.models import Secret
from asana_webhooks.store import MemoryStore
from asana_webhooks.store.base import NewDelivery, candidate_id

SECRET = Secret("d7c5b0a1f3e24986a0b1c2d3e4f50617")
MIB = 1024**2


def quarantined(number: int, size: int) -> NewDelivery:
    signature, name = f"{number:064x}", candidate_id(SECRET)
    return NewDelivery(registration="pending", signature=signature, body=b"x" * size, candidate=name)


@pytest.mark.parametrize(("size", "room"), [(1, 1_000), (MIB, 16)])
async def test_the_quarantine_is_bounded(size: int, room: int) -> None:
    """A pending registration holds 1,000 deliveries and 16 MiB; others do not suffer, and what ends makes room."""
    store = MemoryStore()
    for id in ("pending", "other"):
        await store.open_registration(id, resource=id, public_url="https://example.com/asana", ttl=60)
        await store.add_candidate(id, SECRET)
    await store.confirm_registration("other", webhook_gid="2", secret=SECRET)
    for number in range(room):
        assert await store.put(quarantined(number, size)) == "stored"
    with pytest.raises(StoreFullError, match="in quarantine"):
        await store.put(quarantined(room, size))
    assert await store.put(quarantined(0, size)) == "duplicate"
    assert await store.put(NewDelivery(registration="other", signature="0" * 64, body=b"x")) == "stored"

    await store.close_registration("pending")
    assert (await store.health()).quarantined == 0
    assert len(await store.claim(9, lease=60)) == 1
