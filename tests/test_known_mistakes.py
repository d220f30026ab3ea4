"""Mistakes found in other webhook services and clients that no room's own tests could show by themselves."""

import asyncio
from pathlib import Path

import pytest

from asana_webhooks import (
    AsanaSession,
    Delivery,
    Event,
    MemoryStore,
    Receiver,
    SQLiteStore,
    Worker,
    establish_webhook,
    sign_body,
)
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register


async def sent(receiver: Receiver, content: bytes) -> int:
    """Send a signed delivery; return the status of the answer."""
    headers = [(b"x-hook-signature", sign_body(content, secret=SECRET).encode())]
    return (await receiver.receive(ENDPOINT, headers, content)).status


async def test_a_handler_that_hangs_delays_no_answer() -> None:
    """The answer waits for the store, never for the user's handler (django-asana and gidgethub run it inside)."""
    store = MemoryStore()
    await register(store)
    started = asyncio.Event()

    async def hang(_: Delivery) -> None:
        started.set()
        await asyncio.Event().wait()

    working = asyncio.create_task(Worker(store, hang, concurrency=1, poll=0.001, stop_timeout=0).run())
    receiver = Receiver(store)
    for _ in range(2):
        assert await sent(receiver, body(event())) == 200
        await started.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_a_restart_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """What was answered 200 is in the file, not in a task (bolt's background work dies with the process)."""
    content = body(event())
    async with SQLiteStore(tmp_path / "asana.db") as store:
        await register(store)
        assert await sent(Receiver(store), content) == 200
    got: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        got.append(delivery.body)

    async with SQLiteStore(tmp_path / "asana.db") as store:
        await Worker(store, handle).drain()

    assert got == [content]


async def test_a_duplicate_is_known_after_many_others() -> None:
    """Keys are forgotten by age, when purge is asked for, and not at random (OpenHands)."""
    store = MemoryStore()
    await register(store)
    receiver = Receiver(store)
    contents = [body(event()) for _ in range(500)]
    got: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        got.append(delivery.body)

    for content in (*contents, *contents):
        assert await sent(receiver, content) == 200
        await Worker(store, handle).drain()

    assert got == contents


async def test_a_retry_counts_if_the_first_never_arrived() -> None:
    """Nothing tells a retry from a first try but the store, so one that is new is kept (agno drops it by a header)."""
    async with (
        FakeAsana() as fake,
        AsanaSession(fake.token, base_url=fake.url) as asana,
        MemoryStore() as store,
        serve_receiver(Receiver(store)) as public_url,
    ):
        [project] = fake.projects
        await establish_webhook(asana, store, public_url=public_url, resource=project)
        fake.script(Fault(at="delivery", do="tamper"))
        fake.change(project, field="name")
        await fake.settle()
        assert (await store.health()).waiting == 0
        await fake.advance(60)

        assert [delivery.status for delivery in fake.deliveries if not delivery.heartbeat] == [401, 200]
        assert (await store.health()).waiting == 1


async def test_the_loop_goes_on_while_the_store_waits_for_a_lock(tmp_path: Path) -> None:
    """SQLite works in threads of its own: a database that somebody else holds stops no other task (trackerkit)."""
    async with SQLiteStore(tmp_path / "one.db") as held, SQLiteStore(tmp_path / "two.db") as free:
        holder = sqlite3.connect(tmp_path / "one.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(
            held.open_registration("a" * 64, resource="1", public_url="https://example.com/asana", ttl=60)
        )
        await free.open_registration("b" * 64, resource="1", public_url="https://example.com/asana", ttl=60)
        assert not waiting.done()
        holder.execute("ROLLBACK")
        holder.close()
        await waiting

        assert await held.find_registration("a" * 64) is not None


async def test_unknown_words_and_nobody_as_the_user_are_handled() -> None:
    """An action, type or field that Asana invents tomorrow reaches the handler, and so does the system as the user."""
    store = MemoryStore()
    await register(store)
    strange = event(
        user=None, action="teleported", resource={"gid": "1", "resource_type": "portal"}, change=None, extra={"x": [1]}
    )
    content = body(strange)
    assert await sent(Receiver(store), content) == 200
    got: list[Event] = []

    async def handle(delivery: Delivery) -> None:
        got.extend(delivery.events)

    await Worker(store, handle).drain()

    [only] = got
    assert (only.action, only.user, only.resource.resource_type) == ("teleported", None, "portal")
