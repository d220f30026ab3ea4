"""A worker with a router tries again only the events of a delivery that are not done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from asana_webhooks import (
    Delivery,
    DeliveryState,
    Event,
    EventRouter,
    HandlerExitError,
    MemoryStore,
    PermanentFailure,
    UnreadableEvent,
    Worker,
)
from asana_webhooks.testing import make_delivery, make_event
from tests.helpers.stores import Clock, body, deliver, event, register

HOUR = 3600.0


def of(resource_type: str, gid: str) -> dict[str, Any]:
    return event(resource={"gid": gid, "resource_type": resource_type})


@pytest.fixture
def clock() -> Clock:
    """The store's clock."""
    return Clock()


@pytest.fixture
async def store(clock: Clock) -> MemoryStore:
    """A store with one delivery of six events; the one with the index 1 cannot be read."""
    store = MemoryStore(clock=clock)
    contents = [of("task", "a"), {"odd": 1}, of("tag", "c"), of("story", "d"), of("task", "e"), of("goal", "f")]
    await deliver(store, await register(store), body(*contents))
    return store


class Router(EventRouter):
    """A router that notes what it gets, and fails as it is told. Nothing handles tags."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[str] = []
        self.fails: dict[str, Callable[[], Awaitable[object]]] = {}
        """What happens in the second function of a resource's event, by the first letter of its type."""

        @self.on("task")
        @self.on("story")
        @self.on("goal")
        async def note(event: Event, delivery: Delivery) -> None:
            self.got.append(event.resource.gid)

        @self.on("task")
        @self.on("story")
        @self.on("goal")
        async def fail(event: Event, delivery: Delivery) -> None:
            if event.resource.gid in self.fails:
                await self.fails[event.resource.gid]()

        @self.unreadable
        async def odd(event: UnreadableEvent, delivery: Delivery) -> None:
            self.got.append("b")
            if "b" in self.fails:
                await self.fails["b"]()


def raising(error: BaseException) -> Callable[[], Awaitable[object]]:
    async def fail() -> None:
        raise error

    return fail


async def test_only_what_failed_is_tried_again(store: MemoryStore, clock: Clock) -> None:
    """Each attempt gets the events that are not done, in order and with all their functions, permanent failures too."""
    router = Router()
    router.fails = {
        "b": raising(ValueError("odd")),
        "d": raising(PermanentFailure("gone")),
        "e": raising(LookupError("away")),
    }
    worker = Worker(store, router, attempts=3)
    await worker.drain()
    assert router.got == ["a", "d", "e", "f", "b"]
    [waiting] = await store.deliveries(state=DeliveryState.DELAYED)
    assert waiting.done == (0, 2, 5)
    assert waiting.error == (
        "3 of 6 events not done (1, 3, 4): ExceptionGroup: the handlers of 3 events failed: "
        "PermanentFailure: gone; LookupError: away; ValueError: odd"
    )

    del router.fails["b"]
    del router.fails["e"]
    router.got.clear()
    clock.now += HOUR
    await worker.drain()
    assert router.got == ["d", "e", "b"]
    [letter] = await store.deliveries(state=DeliveryState.DEAD)  # what is left has failed for good
    assert (letter.attempts, letter.done) == (2, (0, 1, 2, 4, 5))
    assert letter.error == "1 of 6 events not done (3): PermanentFailure: gone"

    router.fails.clear()
    router.got.clear()
    assert await store.requeue(letter.id)
    await worker.drain()
    assert router.got == ["d"]
    assert await store.delivery(letter.id) is None


async def hang() -> None:
    await asyncio.Event().wait()


async def return_when_cancelled() -> None:
    try:
        await hang()
    except asyncio.CancelledError:
        return


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        (hang, "TimeoutError: the handler took longer than 0.01 seconds (handler_timeout)"),
        (return_when_cancelled, "TimeoutError: the handler took longer than 0.01 seconds (handler_timeout)"),
        (raising(SystemExit(1)), "SystemExit: 1"),
        (raising(asyncio.CancelledError()), "CancelledError"),
    ],
    ids=["timeout", "timeout swallowed", "exit", "cancelled itself"],
)
async def test_done_is_kept_however_an_attempt_ends(
    store: MemoryStore, clock: Clock, ends: Callable[[], Awaitable[object]], error: str
) -> None:
    """What was done before the handler's timeout or exit is not done again, what was cut off is."""
    router = Router()
    router.fails = {"a": raising(LookupError("away")), "e": ends}
    worker = Worker(store, router, handler_timeout=0.01, poll=0.001)
    try:
        await worker.drain()
    except HandlerExitError:
        assert error.startswith("SystemExit")

    [waiting] = await store.deliveries(state=DeliveryState.DELAYED)
    assert {2, 3} <= {*waiting.done}
    assert not {0, 4} & {*waiting.done}
    assert waiting.error.endswith(error)

    router.fails.clear()
    router.got.clear()
    clock.now += HOUR
    await worker.drain()
    assert {"a", "e"} <= {*router.got} <= {"a", "e", "f", "b"}
    assert (await store.health()).waiting == 0


async def test_a_released_delivery_is_tried_whole(store: MemoryStore) -> None:
    """When the worker stops meanwhile, the attempt does not count, and neither does what it has done."""
    router, begun = Router(), asyncio.Event()

    async def begin() -> None:
        begun.set()
        await hang()

    router.fails = {"e": begin}
    worker = Worker(store, router, stop_timeout=0)
    running = asyncio.create_task(worker.run())
    await begun.wait()
    worker.stop()
    await running

    router.fails.clear()
    router.got.clear()
    await Worker(store, router).drain()
    assert router.got == ["a", "d", "e", "f", "b"]


class OwnCall(Router):
    """A router with a call of its own."""

    async def __call__(self, delivery: Delivery) -> None:
        await super().__call__(delivery)


@pytest.mark.parametrize("kind", ["wrapped", "own call"])
async def test_a_router_inside_something_else(store: MemoryStore, clock: Clock, kind: str) -> None:
    """It is tried whole, also when events are done from before, and adds none to them."""
    direct = Router()
    direct.fails = {"d": raising(LookupError("away"))}
    await Worker(store, direct).drain()
    router = Router() if kind == "wrapped" else OwnCall()
    router.fails = {"e": raising(LookupError("away"))}
    seen: list[tuple[int, ...]] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.done)
        await router(delivery)

    for _ in range(2):
        clock.now += HOUR
        await Worker(store, handle if kind == "wrapped" else router).drain()

    assert router.got == ["a", "d", "e", "f", "b"] * 2
    assert seen == [(0, 1, 2, 4, 5)] * (2 if kind == "wrapped" else 0)
    [waiting] = await store.deliveries(state=DeliveryState.DELAYED)
    assert (waiting.done, waiting.error) == ((0, 1, 2, 4, 5), "LookupError: away")


async def test_nothing_left_to_do(store: MemoryStore) -> None:
    """A delivery whose events are all done is acknowledged, and no function runs."""
    [lease] = await store.claim(1, lease=60)
    await store.fail(lease, error="", retry_in=0, done=range(6))
    router = Router()
    worker = Worker(store, router)
    await worker.drain()
    assert (router.got, worker.counts["done"]) == ([], 1)


async def test_by_hand() -> None:
    """A handler of one's own may keep which events are done, and skip them."""
    odd = UnreadableEvent(raw=None, index=0, problem="odd")
    delivery = make_delivery(*(make_event(gid=gid) for gid in "acd"), unreadable=(odd,), done=(3,))
    router, done = Router(), {*delivery.done}
    router.fails = {"c": raising(LookupError("away"))}
    with pytest.raises(LookupError):
        await router.handle_events(delivery, done)
    assert (router.got, done) == (["a", "c", "b"], {0, 1, 3})

    tags, done = EventRouter(), set()
    tags.on("tag")(AsyncMock())
    await tags.handle_events(delivery, done)
    assert done == {0, 1, 2, 3}  # nothing is to be done


async def test_many_events_in_the_error(clock: Clock) -> None:
    """The error names ten of them at most, and none if the delivery has only one."""
    store = MemoryStore(clock=clock)
    registration = await register(store)
    for number in (1, 12):
        await deliver(store, registration, body(*(of("task", "x") for _ in range(number))))
    router = Router()
    router.fails = {"x": raising(PermanentFailure("gone"))}
    await Worker(store, router).drain()

    one, many = await store.deliveries(state=DeliveryState.DEAD)
    assert one.error == "PermanentFailure: gone"
    assert many.error.startswith("12 of 12 events not done (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …): ExceptionGroup: the han")
