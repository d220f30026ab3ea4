"""What benchmarks of stores begin with: a registration whose secret is known, and deliveries that it proves."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from asana_webhooks import Secret, Store
from asana_webhooks.store.base import NewDelivery, registration_id
from benchmarks.bodies import ENDPOINT, SECRET, delivery, signature
from benchmarks.harness import percentile

ID: Final = registration_id(ENDPOINT)

T = TypeVar("T")


async def register(store: Store, id: str = ID, label: str = "") -> None:
    """Have the store know a webhook."""
    url = "https://example.com/asana"
    assert await store.open_registration(id, resource="1331", label=label, public_url=url, ttl=60)
    assert await store.add_candidate(id, Secret(SECRET))
    assert await store.confirm_registration(id, webhook_gid=f"43214{label}", secret=Secret(SECRET))


def new_deliveries(count: int) -> list[NewDelivery]:
    """Return so many deliveries of one event, no two alike."""
    bodies = (delivery(1, number) for number in range(count))
    return [NewDelivery(registration=ID, signature=signature(body), body=body) for body in bodies]


async def put_all(
    put: Callable[[T], Awaitable[object]], new: Sequence[T], waiting: int
) -> tuple[float, dict[str, float]]:
    """Return deliveries a second, and how long each took and what it cost, with *waiting* on their way at any time."""
    left, latencies = iter(new), list[float]()

    async def keep_putting() -> None:
        for one in left:
            began = time.perf_counter()
            await put(one)
            latencies.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(keep_putting() for _ in range(waiting)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    extras = {name: percentile(latencies, share) * 1e3 for name, share in {"p50 ms": 0.5, "p99 ms": 0.99}.items()}
    return len(new) / seconds, {**extras, "CPU µs a put": cpu / len(new) * 1e6}


async def finish(store: Store, count: int, at_once: int, *, ordered: bool = False) -> tuple[int, float]:
    """Claim and acknowledge so many deliveries; return how many it were, and how many seconds that took."""
    finished, began = 0, time.perf_counter()
    while finished < count:
        leases = await store.claim(min(at_once, count - finished), lease=60, ordered=ordered)
        finished += sum(await asyncio.gather(*map(store.ack, leases)))
    return finished, time.perf_counter() - began
