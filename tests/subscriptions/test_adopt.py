"""adopt_webhook: a live webhook that was made elsewhere goes on with this store, wherever its target ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from attrs import evolve, frozen

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    ConfigurationError,
    EnsuredWebhook,
    ForbiddenError,
    MemoryStore,
    NotFoundError,
    Receiver,
    RetryPolicy,
    Secret,
    WebhookExistsError,
    WebhookFilter,
    adopt_webhook,
    create_webhook,
)
from asana_webhooks.store.base import Store
from asana_webhooks.testing import FakeAsana, Fault
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.doors import DOORS
from tests.subscriptions.scenes import Dawdling, Scene, arrived, live, no_wait, shown


@frozen
class Elsewhere:
    """A scene, and a webhook that something else has made."""

    here: Scene

    async def make(self, segment: str, **options: Any) -> tuple[str, Secret]:
        """Create a webhook as an earlier program did; return its gid and its secret."""
        self.here.fake.script(Fault(at="createWebhook", do="skip_handshake"))
        wanted = {"resource": self.here.fake.projects[0], "target": f"{self.here.public_url}/{segment}"}
        created = await create_webhook(self.here.asana, **(wanted | options))
        assert created.secret is not None
        self.here.fake.requests.clear()
        return created.webhook.gid, created.secret

    async def adopt(self, gid: str, secret: Any, **options: Any) -> EnsuredWebhook:
        return await adopt_webhook(self.here.asana, self.here.store, webhook_gid=gid, secret=secret, **options)

    async def refused(self, gid: str, secret: Any, **options: Any) -> AsanaError:
        """Return the error of adopting; nothing was stored, and nothing changed at Asana."""
        there = list(await self.here.store.list_registrations())
        with pytest.raises(AsanaError) as caught:
            await self.adopt(gid, secret, **options)
        assert list(await self.here.store.list_registrations()) == there
        assert {one.operation for one in self.here.fake.requests} <= {"getWebhook"}
        return caught.value


@asynccontextmanager
async def elsewhere(door: str = "aiohttp") -> AsyncIterator[Elsewhere]:
    store, retry = MemoryStore(), RetryPolicy(attempts=1, sleep=no_wait)
    async with FakeAsana(heartbeat=None) as fake, AsanaSession(fake.token, base_url=fake.url, retry=retry) as asana:
        async with store, DOORS[door](Receiver(store)) as public_url:
            yield Elsewhere(Scene(fake, asana, store, public_url))


TARGETS = {
    "7654": "",
    "1200000000000017": "",
    "webhook": "",
    "x": "",
    "y" * 128: "",
    "health": "",
    "7654/": "",
    "7654?key=a/b%2F": "?key=a/b%2F",
    "7654/?key": "?key",
    "%C3%A4%20%25": "",
    "%2541": "",
    "a+b%2Bc;d=e&f:g@h~": "",
    "%7Ba%7D": "",
    "%C3%A4" * 128: "",
}


@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
@pytest.mark.parametrize(("segment", "query"), TARGETS.items(), ids=lambda text: text[:20])
async def test_whatever_its_target_ends_with(door: str, segment: str, query: str) -> None:
    """What failed before is sent again and accepted, and so is all that comes; ensure_webhook then finds it."""
    async with elsewhere(door) as made:
        here = made.here
        gid, secret = await made.make(segment)
        here.fake.change(here.fake.projects[0], field="name")
        await here.fake.settle()
        assert [one.status for one in here.fake.deliveries] == [404]
        for _ in range(2):  # a second call is none the worse
            adopted = await made.adopt(gid, secret)
            assert (adopted.action, adopted.webhook_gid, adopted.webhook.gid) == ("adopted", gid, gid)
        assert [one.operation for one in here.fake.requests] == ["getWebhook"] * 2
        await here.fake.advance(3600)

        assert await live(here.fake) == {gid}
        assert [(one.webhook_gid, len(one.events)) for one in await arrived(here.store)] == [(gid, 1)] * 2
        here.fake.requests.clear()
        ensured = await here.ensure(public_url=here.public_url + query)
        assert (ensured.action, ensured.webhook_gid, ensured.registration) == ("unchanged", gid, adopted.registration)
        assert [one.operation for one in here.fake.requests] == ["getWebhook"]


async def test_its_filters_and_url_can_be_changed() -> None:
    """It is a webhook like any other: ensured with other filters it is updated, elsewhere replaced; it has a label."""
    async with elsewhere() as made:
        gid, secret = await made.make("7654")
        await made.adopt(gid, secret.reveal(), label="tenant")
        filters = [WebhookFilter(resource_type="project", action="changed")]
        updated = await made.here.ensure(label="tenant", filters=filters)
        assert (updated.action, updated.webhook_gid) == ("updated", gid)
        assert await live(made.here.fake) == {gid}
        assert [one.label for one in await arrived(made.here.store)] == ["tenant"]
        replaced = await made.here.ensure(label="tenant", filters=filters, public_url=f"{made.here.public_url}?v=2")
        assert replaced.action == "replaced"
        assert await live(made.here.fake) == set(made.here.fake.webhooks) == {replaced.webhook_gid}


@pytest.mark.parametrize("segment", ["", "y" * 129, "%C3%A4" * 129, "a%2Fb", "%FF", "a//"])
async def test_targets_that_cannot_be_adopted(segment: str) -> None:
    """A receiver could not tell them from others; the error does not show them."""
    async with elsewhere() as made:
        gid, secret = await made.make(segment)
        if not segment:
            made.here.fake.webhook(gid).target = "https://example.com/?a/b"
        error = await made.refused(gid, secret)

        assert isinstance(error, ConfigurationError)
        assert f"webhook {gid} cannot be adopted: the path of its target must end with a segment of 1 to 128" in str(
            error
        )
        assert not segment or segment not in shown(error)


async def test_what_is_no_secret() -> None:
    """It is refused before anything is sent, and not shown."""
    async with elsewhere() as made:
        for wrong in (b"0123456789abcdef", None, "", "a" * 257, "canary canary", "canary\n", "c\u00e4nary", Secret("")):
            error = await made.refused("12", wrong)
            assert isinstance(error, ConfigurationError)
            assert "secret must be the webhook's X-Hook-Secret" in str(error)
            assert "canary" not in shown(error)
        assert isinstance(await made.refused("first", "a" * 32), ConfigurationError)
        assert isinstance(await made.refused("12", "a" * 32, label="l" * 201), ConfigurationError)
        assert made.here.fake.requests == []


async def test_a_segment_that_is_taken() -> None:
    """Another webhook with the same last segment cannot be adopted, nor the same one under another label or secret."""
    async with elsewhere() as made:
        gid, secret = await made.make("webhook")
        await made.adopt(gid, secret)
        other, its_secret = await made.make("webhook", resource=made.here.fake.add_project())
        for refused in (
            await made.refused(other, its_secret),
            await made.refused(gid, secret, label="tenant"),
            await made.refused(gid, its_secret),
        ):
            assert isinstance(refused, ConfigurationError)
            assert "this endpoint already has a registration" in str(refused)

        made.here.fake.webhooks.pop(other)
        assert await live(made.here.fake) == {gid}


async def test_one_is_live_already() -> None:
    """For its resource and label the store has another: the error names that one."""
    async with elsewhere() as made:
        first = await made.here.establish()
        gid, secret = await made.make("7654")
        error = await made.refused(gid, secret)
        assert isinstance(error, WebhookExistsError)
        assert (error.registration, error.webhook_gid) == (first.registration, first.webhook_gid)

        assert (await made.adopt(gid, secret, label="old")).webhook_gid == gid
        assert await live(made.here.fake) == {first.webhook_gid, gid}


async def test_webhooks_that_are_not_there() -> None:
    """One that Asana does not know, or does not show to this token."""
    async with elsewhere() as made:
        assert isinstance(await made.refused("12", "a" * 32), NotFoundError)
        gid, secret = await made.make("7654")
        async with AsanaSession(made.here.fake.register_app("7").access_token, base_url=made.here.fake.url) as other:
            error = await evolve(made, here=evolve(made.here, asana=other)).refused(gid, secret)
            assert isinstance(error, ForbiddenError)


async def test_a_wrong_secret() -> None:
    """It shows when a delivery comes: that is answered 401."""
    async with elsewhere() as made:
        gid, _ = await made.make("7654")
        await made.adopt(gid, "0123456789abcdef0123456789abcdef")
        made.here.fake.change(made.here.fake.projects[0], field="name")
        await made.here.fake.settle()

        assert [one.status for one in made.here.fake.deliveries] == [401]


async def test_it_may_be_cancelled_at_every_step() -> None:
    """Interrupted half way it costs nothing: the next call adopts the webhook."""
    async with elsewhere() as made:
        mine = evolve(made, here=evolve(made.here, store=cast("Store", Dawdling(made.here.store))))
        gid, secret = await made.make("7654")

        async def check() -> None:
            await made.here.fake.settle()
            assert {one.operation for one in made.here.fake.requests} == {"getWebhook"}
            assert set(made.here.fake.webhooks) == {gid}

        async def adopt() -> None:
            await mine.adopt(gid, secret)

        async def again() -> None:
            assert (await made.adopt(gid, secret)).action == "adopted"
            await check()

        assert await cancel_at_every_step(adopt, again) > 3
        assert await live(made.here.fake) == {gid}
