"""Webhooks that killed processes left: ensure_webhook finds them by one list call, if it is given the workspace."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import evolve, frozen
from cryptography.fernet import Fernet

from asana_webhooks import (
    EnsuredWebhook,
    MemoryStore,
    Receiver,
    RetryPolicy,
    SQLiteStore,
    StoreUnavailableError,
    create_webhook,
)
from asana_webhooks.store.base import RegistrationState, registration_id
from asana_webhooks.store.secret_box import FernetBox
from asana_webhooks.testing import Fault, serve_receiver
from tests.helpers.cancelling import pass_turns
from tests.helpers.ports import free_port
from tests.helpers.stores import Clock
from tests.subscriptions.scenes import GONE, LoopClock, Scene, live, no_wait, scene, troubled


@frozen
class Aftermath:
    """A scene in which processes die while they create webhooks."""

    here: Scene
    clock: Clock

    async def open(self, endpoint: str, *, label: str = "killed") -> None:
        assert await self.here.store.open_registration(
            registration_id(endpoint), resource="8675309", public_url=self.here.public_url, label=label, ttl=75
        )

    async def die(self, target: str = "") -> str:
        """Do what a process does that dies before the 201 of its create; return the webhook's gid."""
        endpoint = secrets.token_urlsafe(32)
        await self.open(endpoint, label=registration_id(endpoint)[:8])
        created = await create_webhook(self.here.asana, resource="8675309", target=f"{self.here.public_url}/{endpoint}")
        if target:
            self.here.fake.webhook(created.webhook.gid).target = target.format(endpoint)
        return created.webhook.gid

    async def ensure(self, workspace: str | None = "1331", *, later: float = 76) -> EnsuredWebhook:
        """Ensure a webhook, when all that was open is overdue."""
        self.clock.now += later
        self.here.fake.requests.clear()
        return await self.here.ensure(workspace=workspace)

    @property
    def asked(self) -> list[str | None]:
        return [one.operation for one in self.here.fake.requests]


@pytest.fixture
async def after() -> AsyncIterator[Aftermath]:
    clock = Clock()
    async with scene(MemoryStore(clock=clock), retry=RetryPolicy(attempts=2, sleep=no_wait)) as here:
        yield Aftermath(here, clock)


async def test_what_killed_processes_created_is_deleted(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """However many there are, one list call for this resource finds them; the log says that they had expired."""
    orphans = [await after.die() for _ in range(3)]
    ensured = await after.ensure()

    assert (ensured.action, ensured.orphans) == ("created", 0)
    assert list(after.here.fake.webhooks) == [ensured.webhook_gid]
    assert after.asked == ["createWebhook", "getWebhooks", *["deleteWebhook"] * 3]
    assert after.here.fake.requests[1].query["resource"] == "8675309"
    assert caplog.text.count("expired before it was confirmed") == len(orphans)
    assert (await after.ensure()).action == "unchanged"
    assert after.asked == ["getWebhook", "getWebhooks"]


async def test_without_a_workspace_it_is_left_to_asana(after: Aftermath) -> None:
    """Nothing is listed; it is answered 404, and Asana deletes it."""
    orphan = await after.die()
    ensured = await after.ensure(workspace=None)

    assert after.asked == ["createWebhook"]
    assert set(after.here.fake.webhooks) == {orphan, ensured.webhook_gid}
    assert await live(after.here.fake) == {ensured.webhook_gid}
    await after.here.fake.advance(25 * 3600)
    assert list(after.here.fake.webhooks) == [ensured.webhook_gid]


async def test_before_the_deadline_it_is_left_alone(after: Aftermath) -> None:
    """Whoever opened it may be alive, and is confirmed then."""
    hold = after.here.fake.hold("createWebhook", when="before_answer")
    establishing = asyncio.create_task(after.here.establish(label="other"))
    await hold.reached()
    await after.ensure(later=74)  # the session's call may take 60 seconds, and confirming 15 more
    hold.release()

    assert (await establishing).webhook_gid in await live(after.here.fake)


async def test_one_that_the_call_waited_for_is_deleted(after: Aftermath) -> None:
    """A process was killed a moment ago: this waits until its registration has expired, and then finds its webhook."""
    endpoint = secrets.token_urlsafe(32)
    await after.open(endpoint, label="")
    target = f"{after.here.public_url}/{endpoint}"
    await create_webhook(after.here.asana, resource="8675309", target=target)
    ensuring = asyncio.create_task(after.ensure(later=0))
    await pass_turns(20)
    assert not ensuring.done()
    after.clock.now += 76

    ensured = await ensuring
    assert list(after.here.fake.webhooks) == [ensured.webhook_gid]


async def test_what_is_looked_at(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """Of a closed registration, below this public URL: deleted. Unknown to this store: logged. Elsewhere: no matter."""
    base = after.here.public_url
    targets = {
        base + "/{}": True,
        base + "/{}/": True,
        base + "/{}x": False,  # unknown
        base + "/{}?tenant=7": False,
        base + "/more/{}": False,
        "https://example.com/asana/{}": False,
    }
    orphans = {await after.die(target): gone for target, gone in targets.items()}
    ensured = await after.ensure()

    stay = {gid for gid, gone in orphans.items() if not gone}
    assert set(after.here.fake.webhooks) == {ensured.webhook_gid, *stay}
    assert ensured.orphans == 0
    assert caplog.text.count("but this store does not know it") == 1
    assert f"webhook {list(orphans)[2]} posts below this public_url" in caplog.text


async def test_a_webhook_without_a_target_is_nobodys(after: Aftermath) -> None:
    """Should Asana send no target, nothing is deleted."""
    await after.die()
    compact = b'{"data": [{"gid": "43214", "target": null}], "next_page": null}'
    after.here.fake.script(Fault(at="getWebhooks", status=200, body=compact))
    await after.ensure()

    assert after.asked == ["createWebhook", "getWebhooks"]


async def test_its_secrets_are_not_needed(after: Aftermath, tmp_path: Path) -> None:
    """A store that cannot open the secret of the handshake leaves its webhook alone while it is open, not longer."""
    port, orphan = free_port(), ""
    for later, name in ((0, "lost"), (0, "new"), (76, "new")):
        box = FernetBox({name: Fernet.generate_key().decode()})
        store = SQLiteStore(tmp_path / "store.db", clock=after.clock, secret_box=box)
        async with store, serve_receiver(Receiver(store), port=port) as public_url:
            there = Aftermath(evolve(after.here, store=store, public_url=public_url), after.clock)
            if name == "lost":
                orphan = await there.die()
            else:
                after.clock.now += later
                await there.here.ensure(label=f"{later}", workspace="1331")
            assert (orphan in after.here.fake.webhooks) is (later == 0)


@pytest.mark.parametrize("trouble", ["500", "slow"])
async def test_a_search_that_fails(after: Aftermath, trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    """The webhook is as wanted, so it is returned. The search is given up after 30 seconds, and the log says so."""
    clock, orphan = LoopClock(), await after.die()
    if trouble == "500":
        after.here.fake.script(Fault(at="getWebhooks", status=500, times=None))
        ensured = await after.ensure()
    else:
        hold = after.here.fake.hold("getWebhooks")
        ensuring = asyncio.create_task(after.ensure())
        await hold.reached()
        clock.turn(25)
        await pass_turns(20)
        assert not ensuring.done()
        clock.turn(5)
        ensured = await ensuring
        hold.release()

    assert await live(after.here.fake) == {ensured.webhook_gid}
    assert orphan in after.here.fake.webhooks
    assert {"500": "the search failed: ", "slow": "the search took longer than 30 seconds"}[trouble] in caplog.text


async def test_a_webhook_that_cannot_be_deleted_is_counted(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """The others are deleted all the same. One that Asana no longer knows counts as deleted; a proxy's 404 does not."""
    gone, stays, stays_too, goes = [await after.die() for _ in range(4)]
    after.here.fake.script(
        Fault(at="deleteWebhook", webhook=gone, status=404, body=GONE),
        Fault(at="deleteWebhook", webhook=stays, status=403),
        Fault(at="deleteWebhook", webhook=stays_too, status=404, body="<h1>Not Found</h1>"),
    )

    assert (await after.ensure()).orphans == 2
    assert goes not in after.here.fake.webhooks
    assert caplog.text.count("an orphaned webhook may remain on resource 8675309") == 2
    assert "Asana deletes it after 24 hours of 404 replies. Reason: deleting it failed" in caplog.text


@pytest.mark.parametrize(
    ("trouble", "orphans"),
    [
        (Fault(at="getWebhooks", status=403, times=2), 0),
        (Fault(at="deleteWebhook", status=403), 0),
        (Fault(at="deleteWebhook", status=403, times=None), 1),
    ],
)
async def test_its_own_orphan_counts_once(after: Aftermath, trouble: Fault, orphans: int) -> None:
    """An answer was lost: what counts is what the last search left, however many found it before."""
    after.here.fake.script(Fault(at="createWebhook", do="lose_answer"), trouble)
    ensured = await after.ensure()

    assert ensured.orphans == orphans == len(after.here.fake.webhooks) - 1


async def test_a_store_that_fails_is_an_error(after: Aftermath) -> None:
    """It is not kept quiet, whether it fails at the start or while a webhook is looked up."""
    await after.die()
    for method in ("expire_registrations", "find_registration"):
        there = evolve(after, here=evolve(after.here, store=troubled(after.here.store, method)))
        with pytest.raises(StoreUnavailableError):
            await there.ensure()


async def test_cancelled_while_it_searches(after: Aftermath) -> None:
    """The webhook is there by then, so the next call leaves it alone, and finds the orphan."""
    await after.die()
    hold = after.here.fake.hold("getWebhooks")
    ensuring = asyncio.create_task(after.ensure())
    await hold.reached()
    ensuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ensuring
    hold.release()

    assert (await after.ensure()).action == "unchanged"
    [confirmed] = await after.here.store.list_registrations(state=RegistrationState.CONFIRMED)
    assert list(after.here.fake.webhooks) == [confirmed.webhook_gid]


async def test_establishing_looks_for_its_own_only(after: Aftermath) -> None:
    """It lists nothing while its answers arrive. After an unknown outcome it searches, and others' orphans go too."""
    orphan = await after.die()
    after.clock.now += 76
    after.here.fake.requests.clear()
    await after.here.establish(workspace="1331", label="a")
    assert after.asked == ["createWebhook"]
    assert orphan in after.here.fake.webhooks

    after.here.fake.script(Fault(at="createWebhook", do="lose_answer"))
    await after.here.establish(workspace="1331", label="b")
    assert await live(after.here.fake) == set(after.here.fake.webhooks)
