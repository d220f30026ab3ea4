"""A process is killed while it replaces a webhook; the next call goes on with what it left."""

import asyncio
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from asana_webhooks import (
    AsanaSession,
    Receiver,
    RegistrationState,
    SQLiteStore,
    ensure_webhook,
    replace_webhook,
)
from asana_webhooks.subscriptions import move
from asana_webhooks.testing import FakeAsana, serve_receiver
from tests.subscriptions.scenes import live
from tests.subscriptions.times import Turned

PROGRAM = """
import asyncio, sys
from asana_webhooks import AsanaSession, SQLiteStore, replace_webhook

async def main(path, token, base_url, gid):
    async with SQLiteStore(path) as store, AsanaSession(token, base_url=base_url) as asana:
        await replace_webhook(asana, store, webhook_gid=gid, overlap=0, longest_wait=0)

asyncio.run(main(*sys.argv[1:]))
"""
POINTS = [
    ("createWebhook", "before", "replace"),
    ("createWebhook", "after_handshake", "ensure"),
    ("createWebhook", "before_answer", "replace"),
    ("deleteWebhook", "before", "replace"),
    ("deleteWebhook", "before", "ensure"),
    ("deleteWebhook", "before_answer", "ensure"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "when", "goes_on"), POINTS)
async def test_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, when: str, goes_on: str) -> None:
    """Wherever it was killed, one webhook is accepted until there is another one, and one is left in the end."""
    path, late = tmp_path / "asana.db", 0.0

    def clock() -> float:
        return time.time() + late

    async with (
        FakeAsana() as fake,
        AsanaSession(fake.token, base_url=fake.url) as asana,
        SQLiteStore(path, clock=clock) as store,
        serve_receiver(Receiver(store)) as url,
    ):
        resource = fake.projects[0]
        old = await ensure_webhook(asana, store, resource=resource, public_url=url)
        hold = fake.hold(operation, when=when)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, *map(str, (path, fake.token, fake.url, old.webhook_gid))
        )
        await hold.reached()
        process.kill()
        await process.wait()
        hold.release()
        await fake.settle()
        late = 100  # a pending registration has expired
        assert len(await live(fake)) == 1

        if goes_on == "ensure":
            for _ in range(2):  # after something has come through both
                ensured = await ensure_webhook(asana, store, resource=resource, public_url=url)
                await live(fake)
            gid = ensured.webhook_gid
        else:
            monkeypatch.setattr(move, "asyncio", Turned(fake))
            monkeypatch.setattr(move, "time", SimpleNamespace(time=clock))
            replaced = await replace_webhook(asana, store, webhook_gid=old.webhook_gid, overlap=0, longest_wait=0)
            gid = replaced.webhook_gid
        assert await live(fake) == {gid}
        assert (gid == old.webhook_gid) is (goes_on == "ensure" and operation != "deleteWebhook")
        [left] = await store.list_registrations(state=RegistrationState.CONFIRMED)
        assert left.webhook_gid == gid
