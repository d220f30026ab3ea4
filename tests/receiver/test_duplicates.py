"""What Asana sends twice is kept once, and what comes before the 201 is kept back: over sockets, until a worker has it.

A delivery is known by its registration and its signature, and so by its bytes and its secret. Asana's events carry no
id; their fingerprints tell when the same one comes in another delivery.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from asana_webhooks import HandshakeMismatchError, Secret
from asana_webhooks.models import Delivery
from asana_webhooks.store.base import Store, registration_id
from asana_webhooks.testing import FakeAsana, Fault
from tests.helpers.attackers import EITHER, Attacker, post, signed, stage
from tests.helpers.receiving import prepare, receiver_process, stored
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register
from tests.helpers.tcp_proxy import Loss, tcp_proxy
from tests.subscriptions.scenes import arrived

OTHER_ENDPOINT = "Another_endpoint_0123456789_abcdefghijklmno"


async def deliver(target: str, content: bytes, secret: Secret = SECRET) -> int:
    return (await post(target, signed(secret, content), content)).status


async def bodies(store: Store) -> list[bytes]:
    return [delivery.body for delivery in await arrived(store)]


def fingerprints(*deliveries: Delivery) -> list[list[str]]:
    return [[event.fingerprint for event in delivery.events] for delivery in deliveries]


# Duplicates


@pytest.mark.slow
async def test_two_processes_store_one(tmp_path: Path) -> None:
    """Fifty times the same at once, at two receivers that share a file: all are answered 200, and one is kept."""
    file = tmp_path / "asana.db"
    await prepare(file)
    content = body(event())
    async with receiver_process(file) as first, receiver_process(file, door="asgi") as second:
        targets = [f"{process.url}/{ENDPOINT}" for process in (first, second)] * 25
        statuses = await asyncio.gather(*(deliver(target, content) for target in targets))

    assert statuses == [200] * 50
    assert (stored(file).deliveries, stored(file).bodies) == (1, [content])


@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_an_answer_that_is_lost_makes_a_duplicate(door: str, kind: str, tmp_path: Path) -> None:
    """Asana, who never saw the 200, sends the very same again, and a worker gets it once."""
    async with stage(door, kind, tmp_path) as here, tcp_proxy(here.public_url) as proxy:
        await here.establish(public_url=proxy.url)
        proxy.lose(replies=Loss())
        await here.change_something()
        await here.fake.advance(10)

        assert [one.status for one in here.fake.deliveries if one.events] == [None, 200]
        assert await bodies(here.store) == [here.fake.deliveries[-1].body]


@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_a_retry_that_has_grown_tells_the_old_events_apart(door: str, kind: str, tmp_path: Path) -> None:
    """With more events it is another delivery, and the fingerprints show which of them had come before."""
    fake = FakeAsana(retries_grow=True)
    async with stage(door, kind, tmp_path, fake=fake) as here, tcp_proxy(here.public_url) as proxy:
        await here.establish(public_url=proxy.url)
        proxy.lose(replies=Loss())
        await here.change_something()
        await here.change_something()
        await fake.advance(10)

        first, grown = fingerprints(*await arrived(here.store))
        assert (len(first), len(grown), len(set(grown))) == (1, 2, 2)
        assert grown[0] == first[0]


@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_other_bytes_are_another_delivery_of_the_same_events(door: str, kind: str, tmp_path: Path) -> None:
    """JSON whose members come in another order is kept as it came, and has the same fingerprints."""
    content = body(event(), event())
    turned = json.dumps(json.loads(content), sort_keys=True).encode()
    async with stage(door, kind, tmp_path) as here:
        await register(here.store)
        target = f"{here.public_url}/{ENDPOINT}"
        assert [await deliver(target, one) for one in (content, turned)] == [200, 200]

        first, second = await arrived(here.store)
        assert (first.body, second.body) == (content, turned)
        assert fingerprints(first) == fingerprints(second)
        assert len(set(*fingerprints(first))) == 2


@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_the_same_bytes_for_two_webhooks_are_two_deliveries(door: str, kind: str, tmp_path: Path) -> None:
    """Even if both had the same secret: each registration has its own, with the same events and fingerprints."""
    content = body(event())
    async with stage(door, kind, tmp_path) as here:
        for label, endpoint in {"one": ENDPOINT, "two": OTHER_ENDPOINT}.items():
            await register(here.store, endpoint, label=label)
            assert await deliver(f"{here.public_url}/{endpoint}", content) == 200

        first, second = await arrived(here.store)
        assert first.body == second.body == content
        assert [first.registration, second.registration] == [*map(registration_id, (ENDPOINT, OTHER_ENDPOINT))]
        assert fingerprints(first) == fingerprints(second)


@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_a_delivery_of_one_webhook_proves_nothing_to_another(door: str, kind: str, tmp_path: Path) -> None:
    """Whoever caught a true delivery cannot use it elsewhere, and at its own webhook it is a duplicate."""
    content = body(event())
    async with stage(door, kind, tmp_path) as here:
        await register(here.store)
        await register(here.store, OTHER_ENDPOINT, Secret("4f8b1e07c92d5a36be70d1f29c8a6453"), label="other")
        endpoints = (ENDPOINT, OTHER_ENDPOINT, ENDPOINT)

        assert [await deliver(f"{here.public_url}/{one}", content) for one in endpoints] == [200, 401, 200]
        assert await bodies(here.store) == [content]


# Quarantine


@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_quarantine_is_released_in_order(door: str, kind: str, tmp_path: Path) -> None:
    """Deliveries from before the 201 reach a worker after it, each once, in their order and before later ones."""
    async with stage(door, kind, tmp_path) as here, here.window() as window:
        here.fake.script(Fault(at="delivery", do="duplicate", after=1))
        attacker = Attacker(window.target)
        await attacker.shake()
        for _ in range(3):
            await here.change_something()
            assert await attacker.forge() == 200
        assert await bodies(here.store) == []
        await window.close()
        await here.change_something()

        sent = [one for one in here.fake.deliveries if one.events]
        assert [one.duplicate for one in sent] == [False, False, True, False, False]
        assert {one.status for one in sent} == {200}
        assert await bodies(here.store) == [one.body for one in sent if not one.duplicate]


@pytest.mark.parametrize("do", ["wrong_secret", "no_secret"])
@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_quarantine_is_dropped_after_a_mismatch(door: str, kind: str, do: str, tmp_path: Path) -> None:
    """If the 201 proves no secret right, nothing that was signed with any of them is kept or comes in any more."""
    async with stage(door, kind, tmp_path) as here:
        here.fake.script(Fault(at="createWebhook", do=do))
        async with here.window() as window:
            await here.change_something()
            [early] = [one.body for one in here.fake.deliveries if one.events]
            assert early in set(here.held())
            with pytest.raises(HandshakeMismatchError):
                await window.close()

        assert await deliver(window.target, early, window.secret) == 404
        assert await bodies(here.store) == []
        assert not {early, window.secret.reveal()} & set(here.held())


BOUNDS: dict[str, tuple[dict[str, Any], list[tuple[int, int]]]] = {
    "count": ({"max_quarantined": 2}, [(300, 200), (300, 200), (300, 503)]),
    "bytes": ({"max_quarantined_bytes": 1000}, [(600, 200), (600, 503), (400, 200)]),
}
"""An option of the SQLite store, and the lengths of deliveries with the status each is answered with."""


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
async def test_quarantine_is_bounded(door: str, bound: str, tmp_path: Path) -> None:
    """Whoever shook hands can fill it: then it is 503 for this webhook alone, and Asana's own come later."""
    limit, expected = BOUNDS[bound]
    forgeries = [padded(size) for size, _ in expected]
    async with stage(door, "sqlite", tmp_path, **limit) as here, here.window() as window:
        attacker = Attacker(window.target)
        await attacker.shake()
        answered = [await deliver(window.target, one, attacker.secrets[0]) for one in forgeries]
        assert answered == [status for _, status in expected]
        await register(here.store, label="other")
        other = body(event())
        assert await deliver(f"{here.public_url}/{ENDPOINT}", other) == 200

        await here.change_something()
        await window.close()
        await here.fake.advance(10)
        sent = [one for one in here.fake.deliveries if one.events]
        assert [one.status for one in sent] == [503, 200]
        assert await bodies(here.store) == [other, sent[0].body]
        assert not set(forgeries) & set(here.held())


def padded(size: int) -> bytes:
    """Return a delivery of exactly so many bytes."""
    content = body(event(action="forged", note=""))
    return content.replace(b'"note":""', b'"note":"%s"' % (b"x" * (size - len(content))))
