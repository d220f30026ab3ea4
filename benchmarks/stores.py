"""What benchmarks of stores begin with: a registration whose secret is known, and deliveries that it proves."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from asana_webhooks import Secret, Store
from asana_webhooks.store.base import NewDelivery, registration_id
from benchmarks.bodies import ENDPOINT, SECRET, delivery, signature
from benchmarks.harness import percentile

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


async def put_all(
    put: Callable[[NewDelivery], Awaitable[object]], new: list[NewDelivery], waiting: int
) -> tuple[float, dict[str, float]]:
    """Return deliveries a second and how long each took, with *waiting* on their way at any time."""
    left, latencies = iter(new), list[float]()

    async def keep_putting() -> None:
        for one in left:
            began = time.perf_counter()
            await put(one)
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(keep_putting() for _ in range(waiting)))
    seconds = time.perf_counter() - began
    shares = {"p50 ms": 0.5, "p99 ms": 0.99}
    return len(new) / seconds, {name: percentile(latencies, share) * 1e3 for name, share in shares.items()}
