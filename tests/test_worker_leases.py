"""Leases that run out while the event loop is blocked, and deliveries that may kill their process."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest

from asana_webhooks import Delivery, DeliveryState, MemoryStore, StoreUnavailableError, Worker
from asana_webhooks.store.base import Lease, StoredDelivery
from tests.helpers.raw import later
from tests.helpers.stores import Clock, body, deliver, event, register

OTHER = "Another_endpoint_0123456789"


class Watched(MemoryStore):
    """A store that counts claims, and can fail to extend leases."""

    claims = 0
    extends = True

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        self.claims += 1
        return await super().claim(limit, lease=lease, ordered=ordered, halt=halt)

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        if not self.extends:
            raise StoreUnavailableError(problem="away")
        return await super().extend(lease, seconds=seconds)

    async def ack(self, lease: Lease) -> bool:
        kept = await super().ack(lease)
        await later(0.001)  # the answer comes later, as from a thread
        return kept


def block(clock: Clock) -> None:
    """Block the event loop for longer than a lease."""
    time.sleep(0.06)
    clock.now += 0.06


@pytest.mark.parametrize("extends", [True, False])
async def test_a_handler_that_blocks_for_longer_than_its_lease(
    caplog: pytest.LogCaptureFixture, *, extends: bool
) -> None:
    """If nobody else has claimed it meanwhile, acknowledging counts. The worker itself begins with it only once: it
    extends the lease before it claims, and if that fails, it keeps the lease that the claim returns.
    """
    clock = Clock()
    store = Watched(clock=clock)
    store.extends = extends
    await deliver(store, await register(store), body(event()))
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        for _ in range(2 if extends else 1):
            before = store.claims
            block(clock)
            while store.claims < before + 2:
                await later(0.001)
        found = await store.delivery(delivery.id)
        attempts.append(0 if found is None else found.attempts)
        block(clock)  # its lease is extended while it is acknowledged

    worker = Worker(store, handle, lease=0.05, poll=0.001)
    running = asyncio.create_task(worker.run())
    while not worker.counts["done"]:
        await later(0.001)
    worker.stop()
    await running

    assert attempts == ([1] if extends else [2])
    assert (worker.counts["done"], worker.counts["lease lost"]) == (1, 0)
    assert await store.delivery(1) is None
    assert "lease lost" not in caplog.text


class Scene:
    """A worker with two deliveries whose handlers wait, and a suspect, which has had two attempts without an answer."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Watched(clock=self.clock)
        self.running: set[int] = set()
        self.beside: dict[int, set[int]] = {}
        """What ran when the handler of a delivery started."""
        self.ends = {id: asyncio.Event() for id in (1, 2, 3, 4)}
        """Set to let a handler return."""
        self.worker = Worker(self.store, self.handle, concurrency=3, lease=0.3, poll=0.001)

    async def handle(self, delivery: Delivery) -> None:
        self.beside[delivery.id] = {*self.running}
        self.running.add(delivery.id)
        try:
            await self.ends[delivery.id].wait()
        finally:
            self.running.discard(delivery.id)

    async def deliver(self) -> None:
        await deliver(self.store, self.registration, body(event(created_at="2027-01-15T07:00:00.000Z")))

    async def start(self) -> "asyncio.Task[None]":
        """Let the worker run until it holds the suspect, delivery 1, beside the two others."""
        self.registration = await register(self.store, OTHER, label="tenant-a")
        await self.deliver()
        for seconds in (60, 61):
            assert len(await self.store.claim(1, lease=seconds)) == 1
            self.clock.now += 60
        for _ in range(2):
            await self.deliver()
        task = asyncio.create_task(self.worker.run())
        await self.until(lambda: self.running == {2, 3})
        self.clock.now += 1
        return task

    async def until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            await later(0.001)


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_a_suspect_runs_alone(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """It waits until the other handlers have ended, while its lease is extended. Until its own has ended, nothing is
    claimed, however many slots are free.
    """
    task = await scene.start()
    said = "delivery 1 of webhook '43214' (label 'tenant-a'): its last two leases expired; it waits"
    await scene.until(lambda: said in caplog.text)
    claims = scene.store.claims
    await scene.deliver()
    expires_at = (await found(scene.store, 1)).due_at or 0
    scene.clock.now += 0.2
    while ((await found(scene.store, 1)).due_at or 0) <= expires_at:
        await later(0.001)
    assert scene.worker.health().handling == 2
    scene.ends[2].set()
    await scene.until(lambda: scene.running == {3})
    scene.ends[3].set()
    await scene.until(lambda: scene.running == {1})
    assert scene.beside[1] == set()
    health = scene.worker.health()
    assert health.handling == 1
    assert health.oldest_attempt_seconds is not None
    await later(0.02)  # time for some claims
    assert (scene.store.claims, scene.running) == (claims, {1})

    scene.ends[1].set()
    await scene.until(lambda: scene.running == {4})
    scene.ends[4].set()
    await scene.until(lambda: scene.worker.counts["done"] == 4)
    scene.worker.stop()
    await task
    assert scene.store.claims > claims


async def found(store: MemoryStore, id: int) -> StoredDelivery:
    """Return a delivery that is not done."""
    delivery = await store.delivery(id)
    assert delivery is not None
    return delivery


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_suspect_that_waits_is_released(scene: Scene, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """When the worker stops or is cancelled meanwhile, its handler does not start, and the attempt does not count."""
    task = await scene.start()
    await scene.until(lambda: "it waits until no other handler runs" in caplog.text)
    if how == "stop":
        scene.worker.stop()
        scene.ends[2].set()
        scene.ends[3].set()
    else:
        task.cancel()
    await asyncio.wait({task})

    assert task.cancelled() is (how == "cancel")
    assert sorted(scene.beside) == [2, 3]
    suspect = await found(scene.store, 1)
    assert (suspect.state, suspect.attempts) == (DeliveryState.WAITING, 2)
    [lease] = await scene.store.claim(9, lease=60)
    assert (lease.id, lease.alone) == (1, True)
