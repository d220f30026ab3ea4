"""A process is killed while it establishes a webhook; what it leaves behind is cleared up by the next one."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attrs import frozen

from asana_webhooks import AsanaSession, Receiver, SQLiteStore, WebhookExistsError
from asana_webhooks.testing import FakeAsana, serve_receiver
from tests.helpers.ports import free_port
from tests.helpers.stores import Clock
from tests.subscriptions.scenes import Scene, arrived, live

PROGRAM = """
import asyncio, sys
from asana_webhooks import AsanaSession, SQLiteStore, establish_webhook

async def main(path, now, token, base_url, public_url, resource):
    async with SQLiteStore(path, clock=lambda: float(now)) as store, AsanaSession(token, base_url=base_url) as asana:
        await establish_webhook(asana, store, public_url=public_url, resource=resource)

asyncio.run(main(*sys.argv[1:]))
"""


@frozen
class Survivor:
    """Another process on the same file: this one, with a store and a receiver of its own."""

    here: Scene
    clock: Clock
    orphan: str


@asynccontextmanager
async def killed(path: Path, *, when: str) -> AsyncIterator[Survivor]:
    """Kill a process while Asana holds its create request, let Asana go on, and open the store anew."""
    clock, port = Clock(), free_port()
    async with FakeAsana() as fake, AsanaSession(fake.token, base_url=fake.url) as asana:
        async with SQLiteStore(path, clock=clock) as store, serve_receiver(Receiver(store), port=port) as public_url:
            hold = fake.hold("createWebhook", when=when)
            arguments = (path, clock.now, fake.token, fake.url, public_url, fake.projects[0])
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, *map(str, arguments))
            await hold.reached()
            process.kill()
            await process.wait()
            hold.release()
            await fake.settle()
        [orphan] = fake.webhooks
        async with SQLiteStore(path, clock=clock) as store, serve_receiver(Receiver(store), port=port) as public_url:
            yield Survivor(Scene(fake, asana, store, public_url), clock, orphan)


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["workspace known", "workspace unknown"])
@pytest.mark.parametrize("when", ["before", "after_handshake", "before_answer"])
async def test_the_next_process_clears_up(tmp_path: Path, when: str, known: bool) -> None:
    """Wherever it was killed, Asana finishes the webhook: its registration is open until its deadline, and no longer.

    Before that it is left alone, no other webhook is created beside it, and none of its events arrives. After it,
    ensure_webhook deletes it if it knows the workspace; otherwise it is answered 404, and not in the way.
    """
    async with killed(tmp_path / "asana.db", when=when) as survivor:
        here, workspace = survivor.here, survivor.here.fake.workspace if known else None
        survivor.clock.now += 60
        with pytest.raises(WebhookExistsError) as caught:
            await here.establish(workspace=workspace)
        assert caught.value.webhook_gid is None
        here.fake.change(here.fake.projects[0], field="name")
        await here.fake.settle()
        assert list(here.fake.webhooks) == [survivor.orphan]
        assert await arrived(here.store) == []

        survivor.clock.now += 120
        ensured = await here.ensure(workspace=workspace)
        left = set() if known else {survivor.orphan}
        assert set(here.fake.webhooks) == {ensured.webhook_gid} | left
        assert await live(here.fake) == {ensured.webhook_gid}
        assert {one.webhook_gid for one in await arrived(here.store)} == {ensured.webhook_gid}
