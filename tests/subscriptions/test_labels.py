"""At most one webhook is live for a resource and label: labels keep several apart, and one may replace another."""

import asyncio
from typing import Any

import pytest

from asana_webhooks import (
    AsanaError,
    ConfigurationError,
    EstablishedWebhook,
    MemoryStore,
    StoreUnavailableError,
    WebhookExistsError,
    delete_webhook,
)
from asana_webhooks.store.base import RegistrationState, Store
from asana_webhooks.testing import Fault
from tests.subscriptions.scenes import Remembering, Scene, arrived, live, scene
from tests.subscriptions.test_establish_turn import Gate


async def registrations(store: Store, state: RegistrationState) -> list[str]:
    return [one.id for one in await store.list_registrations(state=state)]


async def refused(here: Scene, **options: Any) -> AsanaError:
    """Try to establish a webhook; return the error. Nothing was sent, and nothing opened."""
    here.fake.requests.clear()
    pending = await registrations(here.store, RegistrationState.PENDING)
    with pytest.raises(AsanaError) as caught:
        await here.establish(**options)
    assert here.fake.requests == []
    assert await registrations(here.store, RegistrationState.PENDING) == pending
    return caught.value


async def exists(here: Scene, **options: Any) -> tuple[str, str | None]:
    """Try to establish a webhook where one exists; return the registration and the gid in the error."""
    error = await refused(here, **options)
    assert isinstance(error, WebhookExistsError)
    return error.registration, error.webhook_gid


async def test_whose_a_delivery_is() -> None:
    """Two tenants watch one project: each delivery has its tenant's label, also one that comes before the 201."""
    async with scene(MemoryStore()) as here:
        tenants = dict[str, str]()
        for tenant in ("tenant a", "t" * 200):
            here.fake.script(Fault(at="createWebhook", do="early_event"))
            tenants[(await here.establish(label=tenant)).webhook_gid] = tenant
        early = await arrived(here.store)
        here.fake.change(here.fake.projects[0], field="name")
        await here.fake.settle()

        for deliveries in (early, await arrived(here.store)):
            assert {one.webhook_gid: one.label for one in deliveries} == tenants
        assert {one.webhook_gid: one.label for one in await here.store.list_registrations()} == tenants


async def test_a_webhook_that_exists() -> None:
    """A second call for a resource and label names the first one's webhook; another resource or label has its own."""
    async with scene(MemoryStore()) as here:
        first = await here.establish()
        assert await exists(here) == (first.registration, first.webhook_gid)

        other = await here.establish(label="other")
        assert await exists(here, label="other") == (other.registration, other.webhook_gid)
        elsewhere = here.fake.add_project()
        third = await here.establish(resource=elsewhere)
        assert set(here.fake.webhooks) == {one.webhook_gid for one in (first, other, third)}

        await delete_webhook(here.asana, first.webhook_gid)
        await here.store.close_registration(first.registration)
        assert (await here.establish()).webhook_gid in await live(here.fake)


async def test_many_at_once() -> None:
    """One of them creates the webhook; to the others it exists, or is being created."""
    async with scene(MemoryStore()) as here:
        came = await asyncio.gather(*(here.establish() for _ in range(10)), return_exceptions=True)

        [established] = [one for one in came if isinstance(one, EstablishedWebhook)]
        others = [one for one in came if isinstance(one, WebhookExistsError)]
        assert len(others) == 9
        assert {one.registration for one in others} == {established.registration}
        assert list(here.fake.webhooks) == [established.webhook_gid]


async def test_a_webhook_that_is_being_created() -> None:
    """It has no gid yet."""
    async with scene(MemoryStore()) as here:
        hold = here.fake.hold("createWebhook", when="before_answer")
        establishing = asyncio.create_task(here.establish())
        await hold.reached()
        registration, gid = await exists(here)
        hold.release()

        assert (registration, gid) == ((await establishing).registration, None)


async def test_a_webhook_that_came_while_this_call_waited() -> None:
    """It is asked again when the request's turn has come, in the transaction that opens the registration."""
    gate, store = Gate(), MemoryStore()
    async with scene(store, limiter=gate) as here:
        establishing = asyncio.create_task(here.establish())
        await gate.reached.wait()
        opened = await store.open_registration(
            "a" * 64, resource=here.fake.projects[0], public_url="https://example.com/asana", ttl=60
        )
        assert opened
        gate.open.set()
        with pytest.raises(WebhookExistsError) as caught:
            await establishing

        assert caught.value.registration == "a" * 64
        assert here.fake.requests == []


class Blinking(Remembering):
    """A store in which another registration is live just while ours is opened, so many times."""

    blinks = 0

    async def open_registration(self, id: str, **options: Any) -> bool:
        if len(self.opened) >= self.blinks:
            return await super().open_registration(id, **options)
        other = f"{len(self.opened):064}"
        assert await MemoryStore.open_registration(self, other, **options)
        opened = await super().open_registration(id, **options)
        await self.close_registration(other)
        return opened


async def test_a_webhook_that_ended_meanwhile() -> None:
    """If the one that was in the way is closed before it can be named, opening is tried again, three times in all."""
    for blinks in (1, 2, 3):
        store = Blinking()
        store.blinks = blinks
        async with scene(store) as here:
            if blinks < 3:
                assert (await here.establish()).webhook_gid in await live(here.fake)
            else:
                assert isinstance(await refused(here), StoreUnavailableError)


async def test_replacing_a_webhook() -> None:
    """Both are live until the first is closed, and no third one beside them; the new one names the old one."""
    async with scene(MemoryStore()) as here:
        old = await here.establish(label="a")
        hold = here.fake.hold("createWebhook", when="before_answer")
        establishing = asyncio.create_task(here.establish(label="a", replaces=old.registration))
        await hold.reached()
        assert await exists(here, label="a") == (old.registration, old.webhook_gid)
        pending, gid = await exists(here, label="a", replaces=old.registration)
        hold.release()
        new = await establishing

        assert (pending, gid) == (new.registration, None)
        assert (await here.registration(new)).replaces == old.registration
        assert await live(here.fake) == {old.webhook_gid, new.webhook_gid}
        assert await exists(here, label="a", replaces=old.registration) == (new.registration, new.webhook_gid)
        assert await exists(here, label="a", replaces=new.registration) == (old.registration, old.webhook_gid)

        await here.store.close_registration(old.registration)
        assert await exists(here, label="a", replaces=old.registration) == (new.registration, new.webhook_gid)
        newest = await here.establish(label="a", replaces=new.registration)
        assert await live(here.fake) == {new.webhook_gid, newest.webhook_gid}


async def test_replacing_what_is_not_there() -> None:
    """A registration that is closed, or has another resource or label, cannot be replaced."""
    async with scene(MemoryStore()) as here:
        closed, other = await here.establish(label="closed"), await here.establish(label="other")
        await here.store.close_registration(closed.registration)
        elsewhere = here.fake.add_project()
        for options in (
            {"label": "closed", "replaces": closed.registration},
            {"label": "new", "replaces": other.registration},
            {"label": "other", "replaces": other.registration, "resource": elsewhere},
        ):
            error = await refused(here, **options)
            assert isinstance(error, ConfigurationError)
            assert "replaces must be the id of a live registration for this resource and label" in str(error)


async def test_a_request_that_was_refused_for_now_is_in_nobodys_way() -> None:
    """After a 429 the next attempt opens another registration, also if it replaces one."""
    store = Remembering()
    async with scene(store) as here:
        old = await here.establish()
        here.fake.script(Fault(at="createWebhook", status=429, retry_after=0, times=2))
        new = await here.establish(replaces=old.registration)

        assert len(store.opened) == 4
        assert await live(here.fake) == {old.webhook_gid, new.webhook_gid}
