"""What benchmarks of stores begin with: a registration whose secret is known, and deliveries that it proves."""

from typing import Final

from asana_webhooks import Secret, Store
from asana_webhooks.store.base import NewDelivery, registration_id
from benchmarks.bodies import ENDPOINT, SECRET, delivery, signature

ID: Final = registration_id(ENDPOINT)


async def register(store: Store) -> None:
    """Have the store know the webhook."""
    assert await store.open_registration(ID, resource="1331", public_url="https://example.com/asana", ttl=60)
    assert await store.add_candidate(ID, Secret(SECRET))
    assert await store.confirm_registration(ID, webhook_gid="43214", secret=Secret(SECRET))


def new_deliveries(count: int) -> list[NewDelivery]:
    """Return so many deliveries of one event, no two alike."""
    bodies = (delivery(1, number) for number in range(count))
    return [NewDelivery(registration=ID, signature=signature(body), body=body) for body in bodies]
