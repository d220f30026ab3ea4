"""Mistakes found in other webhook services and clients, and the test that keeps each of them out of this package.

Those that no module's own tests could show by themselves are tested here.
"""

import ast
import asyncio
import sqlite3
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
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register

TESTS = Path(__file__).parent

MISTAKES = {
    "create drops the secret": "client/test_operations.py::test_create_returns_the_webhook_and_its_secret",
    "the pager changes its arguments": "client/test_operations.py::test_arguments_are_not_changed",
    "a float timeout is ignored": "client/test_session.py::test_the_deadline_bounds_the_whole_call",
    "transport exceptions leak": "client/test_session.py::test_the_token_shows_up_nowhere",
    "the debug log shows the token": "client/test_session.py::test_the_token_shows_up_nowhere",
    "the library installs log handlers": "client/test_session.py::test_a_session_installs_no_log_handlers",
    "any handshake replaces the secret": (
        "receiver/test_receiver.py::test_a_handshake_after_confirmation_changes_nothing"
    ),
    "a first handshake blocks the true one": (
        "receiver/test_receiver.py::test_a_strangers_handshake_does_not_block_the_true_one"
    ),
    "an event without a signature is accepted": (
        "receiver/test_receiver.py::test_every_unproven_delivery_gets_the_same_empty_401"
    ),
    "no secret means skip, or an empty key": "receiver/test_receiver.py::test_no_secret_is_no_reason_to_believe",
    "empty events skip the check": "receiver/test_receiver.py::test_an_empty_delivery_is_verified_like_any_other",
    "the HMAC is over JSON written anew": "receiver/test_receiver.py::test_the_signature_counts_over_the_raw_bytes",
    "a signature of a wrong length is a 500": (
        "receiver/test_receiver.py::test_every_unproven_delivery_gets_the_same_empty_401"
    ),
    "a signature outside ASCII is a 500": (
        "receiver/test_receiver.py::test_every_unproven_delivery_gets_the_same_empty_401"
    ),
    "after creating anew an old secret is picked": (
        "subscriptions/test_establish.py::test_establishing_again_after_closing_uses_the_new_secret"
    ),
    "two creates at once mix their secrets": (
        "subscriptions/test_establish.py::test_every_webhook_has_an_endpoint_and_a_secret_of_its_own"
    ),
    "handlers run inside the request": "test_known_mistakes.py::test_a_handler_that_hangs_delays_no_answer",
    "a background task is lost on restart": "test_known_mistakes.py::test_a_restart_loses_nothing_that_was_answered",
    "keys of duplicates are forgotten at random": "test_known_mistakes.py::test_a_duplicate_is_known_after_many_others",
    "a retry is dropped though the first never arrived": (
        "test_known_mistakes.py::test_a_retry_counts_if_the_first_never_arrived"
    ),
    "the loop does the blocking work": "test_known_mistakes.py::test_the_loop_goes_on_while_the_store_waits_for_a_lock",
    "a short page ends the walk": "client/test_pages.py::test_short_and_empty_pages_do_not_end_the_walk",
    "an hour of Retry-After is obeyed": (
        "client/test_session.py::test_an_hour_of_retry_after_is_not_obeyed_but_reported"
    ),
    "an unknown action or a null user crashes": (
        "test_known_mistakes.py::test_unknown_words_and_nobody_as_the_user_are_handled"
    ),
    "an event before the 201 is lost": "subscriptions/test_establish.py::test_an_event_before_the_201_arrives_after_it",
    "bad arguments of a list fail far away": "client/test_pages.py::test_arguments_are_checked_before_the_loop",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_has_its_test(mistake: str) -> None:
    """The test that is named for a mistake is there, and says in a sentence what must hold."""
    file, _, name = MISTAKES[mistake].partition("::")
    functions = {
        node.name: node
        for node in ast.parse((TESTS / file).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert ast.get_docstring(functions[name])


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
        content = body(event())
        headers = [(b"x-hook-signature", sign_body(content, secret=SECRET).encode())]
        assert (await receiver.receive(ENDPOINT, headers, content)).status == 200
        await started.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_a_restart_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """What was answered 200 is in the file, not in a task (bolt's background work dies with the process)."""
    content = body(event())
    async with SQLiteStore(tmp_path / "asana.db") as store:
        await register(store)
        headers = [(b"x-hook-signature", sign_body(content, secret=SECRET).encode())]
        assert (await Receiver(store).receive(ENDPOINT, headers, content)).status == 200
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
        headers = [(b"x-hook-signature", sign_body(content, secret=SECRET).encode())]
        assert (await receiver.receive(ENDPOINT, headers, content)).status == 200
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
        waiting = asyncio.create_task(held.open("a" * 64, resource="1", ttl=60))
        await free.open("b" * 64, resource="1", ttl=60)
        assert not waiting.done()
        holder.execute("ROLLBACK")
        holder.close()
        await waiting

        assert await held.find("a" * 64) is not None


async def test_unknown_words_and_nobody_as_the_user_are_handled() -> None:
    """An action, type or field that Asana invents tomorrow reaches the handler, and so does the system as the user."""
    store = MemoryStore()
    await register(store)
    strange = event(
        user=None, action="teleported", resource={"gid": "1", "resource_type": "portal"}, change=None, extra={"x": [1]}
    )
    content = body(strange)
    headers = [(b"x-hook-signature", sign_body(content, secret=SECRET).encode())]
    assert (await Receiver(store).receive(ENDPOINT, headers, content)).status == 200
    got: list[Event] = []

    async def handle(delivery: Delivery) -> None:
        got.extend(delivery.events)

    await Worker(store, handle).drain()

    [only] = got
    assert (only.action, only.user, only.resource.resource_type) == ("teleported", None, "portal")
