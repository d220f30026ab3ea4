"""delete_orphaned_webhooks: what a process left open that died while it was creating webhooks."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import frozen
from cryptography.fernet import Fernet

from asana_webhooks import (
    ConfigurationError,
    MemoryStore,
    RetryPolicy,
    Secret,
    SQLiteStore,
    StoreUnavailableError,
    WebhookExistsError,
    create_webhook,
    delete_orphaned_webhooks,
)
from asana_webhooks.store.base import RegistrationState, registration_id
from asana_webhooks.store.secret_box import FernetBox
from asana_webhooks.testing import Fault
from tests.helpers.cancelling import pass_turns
from tests.helpers.stores import Clock
from tests.subscriptions.scenes import LoopClock, Scene, live, no_wait, scene, troubled


@frozen
class Aftermath:
    """A scene in which processes die."""

    here: Scene
    clock: Clock

    async def die(self, resource: str | None = None) -> str:
        """Do what a process does that dies before the 201 of its create; return the webhook's gid."""
        endpoint = secrets.token_urlsafe(32)
        project = resource or self.here.fake.projects[0]
        assert await self.here.store.open_registration(
            registration_id(endpoint),
            resource=project,
            public_url="https://example.com/asana",
            label=registration_id(endpoint)[:8],
            ttl=120,
        )
        target = f"{self.here.public_url}/{endpoint}"
        created = await create_webhook(self.here.asana, resource=project, target=target)
        return created.webhook.gid

    async def expire_registrations(self, workspace: str | None = "1331") -> int:
        """Delete orphans when all that was open is overdue."""
        self.clock.now += 121
        self.here.fake.requests.clear()
        return await delete_orphaned_webhooks(self.here.asana, self.here.store, workspace=workspace)

    @property
    def asked(self) -> list[str | None]:
        return [one.operation for one in self.here.fake.requests]


@pytest.fixture
async def after() -> AsyncIterator[Aftermath]:
    clock = Clock()
    async with scene(MemoryStore(clock=clock), retry=RetryPolicy(attempts=2, sleep=no_wait)) as here:
        yield Aftermath(here, clock)


async def test_what_a_dead_process_created_is_deleted(after: Aftermath) -> None:
    """Its webhook goes, and only that: what is live stays, and so do other people's webhooks on the resource."""
    established = await after.here.establish()
    theirs = await create_webhook(after.here.asana, resource="8675309", target=await other_people(after))
    orphan = await after.die()

    assert await after.expire_registrations() == 0
    assert orphan not in after.here.fake.webhooks
    assert set(after.here.fake.webhooks) == {established.webhook_gid, theirs.webhook.gid}


async def other_people(after: Aftermath) -> str:
    """Return a target whose handshake is answered by the same receiver, for a registration that is none of ours."""
    endpoint = secrets.token_urlsafe(32)
    assert await after.here.store.open_registration(
        registration_id(endpoint), resource="8675309", public_url="https://example.com/asana", label="other", ttl=3600
    )
    return f"{after.here.public_url}/{endpoint}"


async def test_without_a_workspace_it_is_counted(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be looked for: it is answered 404, and the log says that Asana deletes it then."""
    await after.die()

    assert await after.expire_registrations(workspace=None) == 1
    assert after.asked == []
    assert "an orphaned webhook may remain on resource 8675309" in caplog.text
    assert "Asana deletes it after 24 hours of 404 replies" in caplog.text
    assert await live(after.here.fake) == set()
    await after.here.fake.advance(25 * 3600)
    assert after.here.fake.webhooks == {}


async def test_what_was_never_echoed_has_no_webhook(after: Aftermath) -> None:
    """Nothing is looked for, and nothing counts as left over."""
    await after.here.store.open_registration(
        "a" * 64, resource="8675309", public_url="https://example.com/asana", ttl=60
    )

    assert await after.expire_registrations() == 0
    assert after.asked == []


async def test_its_secrets_are_not_needed(after: Aftermath, tmp_path: Path) -> None:
    """A store that cannot open the secret of the handshake any more still tells that there was one."""
    keys = [FernetBox({name: Fernet.generate_key().decode()}) for name in ("lost", "new")]
    orphan = await after.die()
    endpoint = after.here.fake.webhook(orphan).target.rpartition("/")[2]
    async with SQLiteStore(tmp_path / "store.db", clock=after.clock, secret_box=keys[0]) as store:
        await store.open_registration(
            registration_id(endpoint), resource="8675309", public_url="https://example.com/asana", ttl=120
        )
        await store.add_candidate(registration_id(endpoint), Secret("a" * 32))
    after.clock.now += 121
    async with SQLiteStore(tmp_path / "store.db", clock=after.clock, secret_box=keys[1]) as store:
        assert await delete_orphaned_webhooks(after.here.asana, store, workspace="1331") == 0
    assert orphan not in after.here.fake.webhooks


async def test_before_the_deadline_it_is_left_alone(after: Aftermath) -> None:
    """Whoever opened it may be alive, and is confirmed then."""
    hold = after.here.fake.hold("createWebhook", when="before_answer")
    establishing = asyncio.create_task(after.here.establish())
    await hold.reached()
    after.clock.now += 119
    assert await delete_orphaned_webhooks(after.here.asana, after.here.store, workspace="1331") == 0
    hold.release()

    assert await live(after.here.fake) == {(await establishing).webhook_gid}


async def test_one_walk_for_each_resource(after: Aftermath) -> None:
    """However many died on a resource, its webhooks are listed once."""
    other = after.here.fake.add_project()
    for resource in ("8675309", other, "8675309", "8675309", other):
        await after.die(resource)

    assert await after.expire_registrations() == 0
    assert sorted(map(str, after.asked)) == ["deleteWebhook"] * 5 + ["getWebhooks"] * 2
    lists = [one.query for one in after.here.fake.requests if one.operation == "getWebhooks"]
    assert {one["resource"] for one in lists} == {"8675309", other}
    assert after.here.fake.webhooks == {}


async def test_a_target_is_known_by_its_last_segment(after: Aftermath) -> None:
    """Only the hash of the endpoint is stored, so that of every target's last segment is compared with it."""
    base = "https://example.com"
    ours = ["/asana/{}", "/{}", "/asana/{}/", "/asana/{}?tenant=7/8", "/asana/{}/?tenant=7", "/asana/{}#top"]
    others = ["/asana/{}x", "/asana/x{}", "/{}/asana", "/asana?endpoint=/{}", "/asana/#/{}", "/", "", "/a"]
    for shape in (*(base + path for path in (*ours, *others)), ""):
        gid = await after.die()
        record = after.here.fake.webhook(gid)
        record.target = shape.format(record.target.rpartition("/")[2])
        is_ours = shape.removeprefix(base) in ours

        assert await after.expire_registrations() == (0 if is_ours else 1), shape
        assert (gid not in after.here.fake.webhooks) is is_ours, shape


async def test_a_webhook_without_a_target_is_nobodys(after: Aftermath) -> None:
    """Should Asana send no target, nothing is deleted."""
    await after.die()
    compact = b'{"data": [{"gid": "43214", "target": null}], "next_page": null}'
    after.here.fake.script(Fault(at="getWebhooks", status=200, body=compact))

    assert await after.expire_registrations() == 1
    assert after.asked == ["getWebhooks"]


async def test_what_the_list_does_not_show_is_counted(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """It may be in another workspace, or another user's: nothing says that there is none."""
    orphan = await after.die()
    after.here.fake.script(Fault(at="getWebhooks", status=200, body=b'{"data": [], "next_page": null}'))

    assert await after.expire_registrations() == 1
    assert "an orphaned webhook may remain on resource 8675309" in caplog.text
    assert "the search did not find it" in caplog.text
    assert list(after.here.fake.webhooks) == [orphan]


async def test_looking_has_an_end(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """After 30 seconds on a resource it goes on with the next one, and all of the first may be left over."""
    clock = LoopClock()
    await after.die()
    await after.die()
    orphan = await after.die(after.here.fake.add_project())
    hold = after.here.fake.hold("getWebhooks")
    deleting = asyncio.create_task(after.expire_registrations())
    await hold.reached()
    clock.turn(25)
    await pass_turns(20)
    assert "the search" not in caplog.text
    clock.turn(5)

    assert await deleting == 2
    hold.release()
    assert caplog.text.count("the search took longer than 30 seconds") == 2
    assert orphan not in after.here.fake.webhooks


async def test_trouble_at_asana_is_counted(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """A list that cannot be had is no reason to fail: the registrations have ended."""
    await after.die()
    await after.die()
    after.here.fake.script(Fault(at="getWebhooks", status=500, times=None))

    assert await after.expire_registrations() == 2
    assert caplog.text.count("the search failed") == 2
    assert await live(after.here.fake) == set()


async def test_a_webhook_that_cannot_be_deleted_is_counted(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """The others are deleted all the same, and one that is gone meanwhile counts as deleted."""
    gone, stays, goes = [await after.die() for _ in range(3)]
    after.here.fake.script(
        Fault(at="deleteWebhook", webhook=gone, status=404), Fault(at="deleteWebhook", webhook=stays, status=403)
    )

    assert await after.expire_registrations() == 1
    assert goes not in after.here.fake.webhooks
    assert caplog.text.count("an orphaned webhook may remain") == caplog.text.count("deleting it failed") == 1


async def test_bad_arguments_end_nothing(after: Aftermath) -> None:
    """What cannot be a workspace is refused before any registration is closed."""
    await after.die()
    with pytest.raises(ConfigurationError):
        await after.expire_registrations(workspace="my workspace")

    assert len(await after.here.store.expire_registrations()) == 1


async def test_a_store_that_fails_is_an_error_here(after: Aftermath) -> None:
    """Closing registrations is what was asked for, so it does not keep quiet about it."""
    with pytest.raises(StoreUnavailableError):
        await delete_orphaned_webhooks(after.here.asana, troubled(after.here.store, "expire_registrations"))


async def test_establishing_deletes_orphans_first(after: Aftermath) -> None:
    """What died before is deleted, and is no orphan of this call."""
    orphan = await after.die()
    after.clock.now += 121
    established = await after.here.establish(workspace="1331")

    assert established.orphans == 0
    assert orphan not in after.here.fake.webhooks
    assert await live(after.here.fake) == {established.webhook_gid}


async def test_a_webhook_that_exists_comes_before_orphans(after: Aftermath) -> None:
    """Where one is live already, the call only says so: it sends nothing, and closes no registration."""
    established = await after.here.establish()
    orphan = await after.die()
    after.clock.now += 121
    after.here.fake.requests.clear()
    with pytest.raises(WebhookExistsError):
        await after.here.establish(workspace="1331")

    assert after.asked == []
    assert set(after.here.fake.webhooks) == {established.webhook_gid, orphan}
    assert await after.expire_registrations() == 0
    assert set(after.here.fake.webhooks) == {established.webhook_gid}


async def test_establishing_without_a_workspace_leaves_orphans_to_others(after: Aftermath) -> None:
    """It could not look for anything, and what has ended is not found again; overdue, it accepts nothing anyway."""
    orphan = await after.die()
    after.clock.now += 121
    established = await after.here.establish()
    assert await live(after.here.fake) == {established.webhook_gid}

    assert await after.expire_registrations() == 0
    assert orphan not in after.here.fake.webhooks
    assert await live(after.here.fake) == {established.webhook_gid}


async def test_trouble_in_clearing_up_does_not_fail_establishing(
    after: Aftermath, caplog: pytest.LogCaptureFixture
) -> None:
    """Asana refuses to list and the call goes on."""
    await after.die()
    after.clock.now += 121
    after.here.fake.script(Fault(at="getWebhooks", status=403, times=None))
    established = await after.here.establish(workspace="1331")

    assert await live(after.here.fake) == {established.webhook_gid}
    assert "the search failed" in caplog.text


async def test_clearing_up_does_not_hold_up_establishing(after: Aftermath, caplog: pytest.LogCaptureFixture) -> None:
    """After ten seconds it is given up."""
    clock = LoopClock()
    await after.die()
    after.clock.now += 121
    hold = after.here.fake.hold("getWebhooks")
    establishing = asyncio.create_task(after.here.establish(workspace="1331"))
    await hold.reached()
    clock.turn(5)
    await pass_turns(20)
    assert "timed out" not in caplog.text
    clock.turn(5)
    established = await establishing
    hold.release()

    assert await live(after.here.fake) == {established.webhook_gid}
    assert "failed (timed out); creating the webhook anyway" in caplog.text


async def test_deleting_orphans_may_be_cancelled(after: Aftermath) -> None:
    """The registration has ended by then, so nothing is live, and the next call has nothing to do."""
    orphan = await after.die()
    hold = after.here.fake.hold("getWebhooks")
    deleting = asyncio.create_task(after.expire_registrations())
    await hold.reached()
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    hold.release()

    assert await live(after.here.fake) == set()
    assert await after.expire_registrations() == 0
    registration = registration_id(after.here.fake.webhook(orphan).target.rpartition("/")[2])
    found = await after.here.store.find_registration(registration)
    assert found is not None
    assert found.state is RegistrationState.CLOSED
