"""The answer for load balancers: what it says, how often the store is asked, and both doors."""

import asyncio
import gc
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from attrs import evolve

from asana_webhooks import MemoryStore, Receiver, StoreHealth, StoreUnavailableError
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.health import HealthCheck, health_reply
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import registration_id
from tests.helpers.cancelling import pass_turns
from tests.helpers.doors import serve_app, serve_asgi
from tests.helpers.guides import program
from tests.helpers.stores import ENDPOINT, Clock, body, deliver, event, register

WELL = StoreHealth(
    waiting=3,
    leased=1,
    quarantined=2,
    dead=4,
    oldest_age=1.5,
    writable=True,
    webhooks=2,
    silent=("43214",),
    log_bytes=4096,
    problems=("the log grows",),
)


def told(health: StoreHealth | None, problems: Sequence[str] = (), **options: Any) -> tuple[int, dict[str, Any]]:
    reply = health_reply(health, problems, **options)
    assert dict(reply.headers) == {b"Content-Type": b"application/json", b"Cache-Control": b"no-store"}
    return reply.status, json.loads(reply.body)


def test_all_is_well() -> None:
    """200, and the numbers an operator wants; no webhook is named, for anyone may read it."""
    assert told(WELL, WELL.problems) == (
        200,
        {
            "status": "ok",
            "writable": True,
            "secrets_readable": True,
            "waiting": 3,
            "leased": 1,
            "quarantined": 2,
            "dead": 4,
            "oldest_age": 1.5,
            "webhooks": 2,
            "silent": 1,
            "log_bytes": 4096,
            "problems": ["the log grows"],
        },
    )


def test_nothing_should_be_sent_here() -> None:
    """503 if deliveries could not be checked or stored, the store says nothing, or the receiver is full or stops.

    The JSON has the same members each time; what only the store knows is null if it says nothing.
    """
    refused: list[tuple[StoreHealth | None, dict[str, Any], str, list[str]]] = [
        (evolve(WELL, writable=False), {}, "unavailable", ["why"]),
        (evolve(WELL, secrets_readable=False), {}, "unavailable", ["why"]),
        (WELL, {"overload": "full"}, "unavailable", ["full", "why"]),
        (WELL, {"stopping": True}, "stopping", ["the receiver is stopping", "why"]),
        (None, {}, "unavailable", ["why"]),
        (None, {"stopping": True}, "stopping", ["the receiver is stopping", "why"]),
    ]
    for health, options, status, problems in refused:
        code, said = told(health, ["why"], **options)
        assert (code, said["status"], said["problems"]) == (503, status, problems)
        assert said.keys() == told(WELL)[1].keys()
        members = ("writable", "secrets_readable", "waiting", "webhooks", "silent")
        assert [said[name] for name in members] == (
            [None] * 5 if health is None else [health.writable, health.secrets_readable, 3, 2, 1]
        )


class Asked(MemoryStore):
    """A store that counts who asks how it is, and may fail or hang."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.error: BaseException | None = None
        self.answer: StoreHealth | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.entered = asyncio.Event()
        self.cancelled = False

    async def health(self) -> StoreHealth:
        self.asked += 1
        self.entered.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return self.answer or await super().health()


async def test_one_answer_is_good_for_a_second() -> None:
    """However many ask, the store is asked once, and again when the answer is old."""
    store, clock = Asked(), Clock()
    check = HealthCheck(store, clock=clock)

    assert [health for health, _ in await asyncio.gather(*(check.ask() for _ in range(50))) if health is None] == []
    clock.now += 1.0
    await check.ask()
    assert store.asked == 1
    clock.now += 0.1
    await check.ask()
    assert store.asked == 2


async def test_a_store_that_fails_says_why() -> None:
    """Our own errors are shown as the log shows them, of others only the type; and it is asked again later."""
    store, clock = Asked(), Clock()
    check = HealthCheck(store, clock=clock)
    gone = StoreUnavailableError(problem="gone")
    told = [(gone, [str(gone)]), (RuntimeError("hunter2"), ["RuntimeError"]), (asyncio.CancelledError(), None)]
    for error, problems in told:
        store.error = error
        assert await check.ask() == (None, problems or ["CancelledError"])
        clock.now += 2
    store.error = None
    assert (await check.ask())[0] is not None


async def test_a_store_that_hangs_after_it_failed() -> None:
    """While a check hangs, the problems of the failed check before it are shown; a check that goes well clears them."""
    store, clock = Asked(), Clock()
    check = HealthCheck(store, timeout=0.01, clock=clock)
    late = "the store did not answer within 0.01 seconds"
    bad = StoreHealth(waiting=0, leased=0, quarantined=0, dead=0, oldest_age=0, writable=False, webhooks=0)
    for answer, last in (
        (StoreUnavailableError(problem="gone"), [str(StoreUnavailableError(problem="gone"))]),
        (evolve(bad, problems=("the disk is full",)), ["the disk is full"]),
        (evolve(bad, writable=True, secrets_readable=False, problems=("no key",)), ["no key"]),
        (WELL, []),
    ):
        store.go.clear()
        store.error, store.answer = (answer, None) if isinstance(answer, Exception) else (None, answer)
        await check.ask()
        store.go.set()
        await pass_turns(5)
        store.go.clear()
        clock.now += 2
        assert await check.ask() == (None, [late, *last])
        clock.now += 11  # the next one is asked anew
    await check.aclose()


async def test_a_store_that_hangs_is_asked_seldom() -> None:
    """Nobody waits for long; a question without an answer is dropped after a while, and closing ends the last one."""
    store, clock = Asked(), Clock()
    store.go.clear()
    check = HealthCheck(store, timeout=0, give_up=10, clock=clock)

    for _ in range(3):
        assert await check.ask() == (None, ["the store did not answer within 0 seconds"])
        clock.now += 5
    assert store.asked == 1
    clock.now += 0.1
    assert (await check.ask())[0] is None
    assert (store.asked, store.cancelled) == (2, True)
    await pass_turns(5)
    assert await check.ask() == (None, ["the store did not answer within 0 seconds"])  # nothing of the dropped one
    store.cancelled = False
    await check.aclose()
    await check.aclose()
    assert store.cancelled


async def test_a_store_is_well_again_after_it_hung() -> None:
    """One question that never ends does not take the receiver out for good."""
    store, clock = Asked(), Clock()
    store.go.clear()
    check = HealthCheck(store, timeout=0.01, clock=clock)
    assert (await check.ask())[0] is None
    store.go = asyncio.Event()
    store.go.set()
    clock.now += 11

    assert (await check.ask())[0] is not None


async def test_closing_waits_for_no_store_that_ignores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not let itself be interrupted holds up nobody's end for long."""
    monkeypatch.setattr("asana_webhooks.receiver.health._CANCEL_SECONDS", 0)
    go, is_over = asyncio.Event(), asyncio.Event()

    class Stubborn(MemoryStore):
        async def health(self) -> StoreHealth:
            while not go.is_set():
                with suppress(asyncio.CancelledError):
                    await go.wait()
            is_over.set()
            return await super().health()

    check = HealthCheck(Stubborn(), timeout=0)
    assert (await check.ask())[0] is None
    await check.aclose()
    assert not is_over.is_set()
    go.set()
    await is_over.wait()


async def test_a_late_failure_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """A store that fails when nobody waits any more leaves no complaint of asyncio's about it."""
    store = Asked()
    store.go.clear()
    store.error = StoreUnavailableError(problem="gone")
    check = HealthCheck(store, timeout=0)
    assert (await check.ask())[0] is None
    store.go.set()
    await pass_turns(5)
    del check
    gc.collect()

    assert caplog.text == ""


async def test_a_stopped_receiver_asks_nobody() -> None:
    """It says that it is stopping; the store may be closing already."""
    store = Asked()
    receiver = Receiver(store)
    receiver.stop()

    reply = await receiver.health()
    assert (reply.status, json.loads(reply.body)["problems"]) == (503, ["the receiver is stopping"])
    assert store.asked == 0


async def test_who_goes_away_does_not_take_the_answer_along() -> None:
    """One who asked gives up, and the others get the same answer."""
    store = Asked()
    store.go.clear()
    check = HealthCheck(store)
    first, second = asyncio.create_task(check.ask()), asyncio.create_task(check.ask())
    await store.entered.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    store.go.set()

    assert (await second)[0] is not None
    assert (store.asked, store.cancelled) == (1, False)


async def test_a_stranger_learns_nothing_by_asking() -> None:
    """What became of a request does not show: answers are equal so that nobody learns which endpoints there are."""
    store = MemoryStore()
    await register(store)
    assert await store.open_registration(
        registration_id("pending_0123456789"), resource="1", public_url="https://example.com/asana", ttl=60
    )
    receiver = Receiver(store)
    before = (await receiver.health()).body
    for endpoint in (ENDPOINT, "pending_0123456789", "unknown_0123456789"):
        assert (await receiver.receive(endpoint, [(b"x-hook-signature", b"0" * 64)], b"{}")).status in (401, 404)

    assert (await receiver.health()).body == before
    assert (await Receiver(store).health()).body == before  # asked anew


@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
async def test_through_the_doors(door: str) -> None:
    """GET and HEAD of <path>/health are answered, and deliveries as ever."""
    store = MemoryStore()
    await deliver(store, await register(store), body(event()))
    receiver = Receiver(store)
    if door == "aiohttp":
        app = web.Application()
        app.add_routes(webhook_routes(receiver, "/hooks"))
        app.add_routes(webhook_routes(receiver, "/closed", health=False))
        serving = serve_app(app)
    else:
        serving = serve_asgi(ReceiverApp(receiver))
    async with serving as url, aiohttp.ClientSession() as http:
        async with http.get(f"{url}/hooks/health") as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
            assert (await answer.json())["waiting"] == 1
        async with http.head(f"{url}/hooks/health") as answer:
            assert (answer.status, await answer.read()) == (200, b"")
            assert int(answer.headers["Content-Length"]) > 100
        async with http.post(f"{url}/hooks/health", data=b"{}") as answer:
            assert answer.status == 404  # no endpoint
        async with http.get(f"{url}/hooks/elsewhere") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        receiver.stop()
        async with http.get(f"{url}/hooks/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (503, "stopping")
    await receiver.aclose()


async def test_it_can_be_left_out() -> None:
    """With health=False, neither aiohttp's routes nor the ASGI application answer it."""
    receiver = Receiver(MemoryStore())
    app = web.Application()
    app.add_routes(webhook_routes(receiver, "", health=False))
    for serving in (serve_app(app), serve_asgi(ReceiverApp(receiver, health=False))):
        async with serving as url, aiohttp.ClientSession() as http, http.get(f"{url}/health") as answer:
            assert answer.status == 405


async def test_an_answer_to_head_has_no_body() -> None:
    """Not every server takes it away."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("there is nothing to receive")

    scope = {"type": "http", "method": "HEAD", "path": "/health", "headers": []}
    await ReceiverApp(Receiver(MemoryStore()))(scope, receive, send)

    assert [message.get("body", message.get("status")) for message in sent] == [200, b""]
    assert dict(sent[0]["headers"])[b"content-length"] != b"0"


def test_the_guide_finds_silent_webhooks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The program prints each confirmed webhook without a sign of life for ten hours, however many there are."""
    clock = Clock(time.time() - 11 * 3600)
    store = MemoryStore(clock=clock)

    async def fill() -> None:
        ids = [await register(store, f"endpoint-{n}", gid=f"{n}", label=f"tenant-{n}") for n in range(250)]
        opened = {"resource": "8675309", "public_url": "https://example.com/asana"}
        assert await store.open_registration("pending", **opened, ttl=1e9)
        clock.now = time.time()
        await store.record_heartbeat(ids[7])
        await deliver(store, ids[8], body(event()))
        await register(store, "new", gid="new", label="new")
        said = json.loads((await Receiver(store).health()).body)
        assert (said["webhooks"], said["silent"]) == (251, 100)

    asyncio.run(fill())
    monkeypatch.setattr("asana_webhooks.open_store", lambda _: store)
    exec(program("receiver", "Silent webhooks"), {})

    lines = [line.split(" silent since ")[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(lines) == sorted(f"{n} tenant-{n}" for n in range(250) if n not in {7, 8})
