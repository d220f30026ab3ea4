"""remove_webhook and remove_webhooks: deleted at Asana, then closed; what is interrupted can be called again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from attrs import evolve, field, frozen

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    ConfigurationError,
    EstablishedWebhook,
    MemoryStore,
    NotAuthorizedError,
    NotFoundError,
    RetryPolicy,
    Secret,
    ServerError,
    StoreUnavailableError,
    WebhookNotVisibleError,
    delete_webhook,
    remove_webhook,
    remove_webhooks,
)
from asana_webhooks.store.base import RegistrationState, Store
from asana_webhooks.testing import Fault
from tests.helpers.cancelling import cancel_at_every_step
from tests.subscriptions.scenes import Dawdling, Scene, Stuck, arrived, live, no_wait, scene, troubled


@frozen
class Stage:
    """A scene with webhooks."""

    here: Scene
    made: dict[str, EstablishedWebhook] = field(factory=dict)

    async def remove(self, **options: Any) -> bool:
        """Remove a webhook; the name of one that was made stands for its gid."""
        self.here.fake.requests.clear()
        if "webhook_gid" in options:
            made = self.made.get(options["webhook_gid"])
            options["webhook_gid"] = made.webhook_gid if made else options["webhook_gid"]
        return await remove_webhook(self.here.asana, self.here.store, **options)

    @property
    def deletes(self) -> int:
        assert {one.operation for one in self.here.fake.requests} <= {"deleteWebhook"}
        return len(self.here.fake.requests)

    async def states(self) -> dict[str, RegistrationState]:
        return {name: (await self.here.registration(one)).state for name, one in self.made.items()}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with scene(MemoryStore(), retry=RetryPolicy(attempts=1, sleep=no_wait)) as here:
        yield Stage(here)


async def nothing(_: Stage) -> None: ...


async def one(stage: Stage) -> None:
    stage.made["a"] = await stage.here.establish(label="tenant")


async def two(stage: Stage) -> None:
    await one(stage)
    stage.made["b"] = await stage.here.establish(label="tenant", replaces=stage.made["a"].registration)


async def moving(stage: Stage) -> None:
    await two(stage)
    assert await stage.here.store.retire_registration(stage.made["a"].registration, after=3600)


async def gone(stage: Stage) -> None:
    await one(stage)
    await delete_webhook(stage.here.asana, stage.made["a"].webhook_gid)


async def closed(stage: Stage) -> None:
    await one(stage)
    await stage.here.store.close_registration(stage.made["a"].registration)


TENANT = {"resource": "8675309", "label": "tenant"}
# What there is, what is removed, what it returns, how many are deleted at Asana, and which webhooks are left.
Case = tuple[Callable[[Stage], Awaitable[None]], dict[str, str], bool, int, str]
CASES: list[Case] = [
    (nothing, TENANT, False, 0, ""),
    (nothing, {"webhook_gid": "43214"}, False, 0, ""),
    (one, TENANT, True, 1, ""),
    (one, {"webhook_gid": "a", "label": "tenant"}, True, 1, ""),
    (one, {"resource": "8675309"}, False, 0, "a"),
    (one, {"webhook_gid": "a"}, False, 0, "a"),
    (one, {"resource": "1331", "label": "tenant"}, False, 0, "a"),
    (two, TENANT, True, 2, ""),
    (two, {"webhook_gid": "a", "label": "tenant"}, True, 2, ""),
    (two, {"webhook_gid": "b", "label": "tenant"}, True, 2, ""),
    (moving, TENANT, True, 2, ""),
    # Killed before: deleted and not closed, or, in a create that was removed meanwhile, closed and not deleted.
    (gone, TENANT, True, 1, ""),
    (gone, {"webhook_gid": "a", "label": "tenant"}, True, 1, ""),
    (closed, TENANT, False, 0, "a"),
    (closed, {"webhook_gid": "a", "label": "tenant"}, False, 1, ""),
    (closed, {"webhook_gid": "a"}, False, 0, "a"),
]


@pytest.mark.parametrize("case", CASES)
async def test_what_is_removed(stage: Stage, case: Case) -> None:
    """Both of a pair, and nothing with another label or resource; one that is gone counts. Again, there is none."""
    before, which, removed, deletes, left = case
    await before(stage)

    assert await stage.remove(**which) is removed
    assert stage.deletes == deletes
    assert set(stage.here.fake.webhooks) == {stage.made[name].webhook_gid for name in left}
    confirmed = await stage.here.store.list_registrations(state=RegistrationState.CONFIRMED)
    assert len(confirmed) == (len(left) if before is not closed else 0)
    assert not await stage.remove(**which)


async def test_which_one(stage: Stage) -> None:
    """Exactly one of resource and webhook_gid; invalid arguments are refused before anything is looked up."""
    await one(stage)
    wrong: list[dict[str, Any]] = [
        {},
        {"resource": "8675309", "webhook_gid": "12"},
        {"resource": "my project"},
        {"webhook_gid": "first"},
        {"resource": "8675309", "label": "l" * 201},
    ]
    for options in wrong:
        with pytest.raises(ConfigurationError):
            await stage.remove(**options)
    swapped: Any = stage.here.store
    with pytest.raises(ConfigurationError, match="pass the session first, then the store"):
        await remove_webhook(swapped, stage.here.store, resource="8675309")
    with pytest.raises(ConfigurationError, match="pass the session first, then the store"):
        await remove_webhooks(swapped, stage.here.store, label="")

    assert await live(stage.here.fake) == {stage.made["a"].webhook_gid}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, WebhookNotVisibleError), (500, ServerError), (401, NotAuthorizedError), (404, NotFoundError)],
)
async def test_asana_does_not_delete_it(stage: Stage, status: int, kind: type[AsanaError]) -> None:
    """Its registration stays, so that its deliveries are accepted and the next call removes it."""
    await one(stage)
    stage.here.fake.script(Fault(at="deleteWebhook", status=status))
    with pytest.raises(kind) as caught:
        await stage.remove(**TENANT)

    assert type(caught.value) is kind
    assert await live(stage.here.fake) == {stage.made["a"].webhook_gid}
    assert await stage.remove(**TENANT)
    assert stage.here.fake.webhooks == {}


async def test_what_is_stored_is_still_handled(stage: Stage) -> None:
    """Removing stops what comes, not what came."""
    await one(stage)
    await live(stage.here.fake)
    await stage.remove(**TENANT)

    assert [len(one.events) for one in await arrived(stage.here.store)] == [1]


async def test_confirmed_while_it_is_removed(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A webhook whose 201 arrives between the look at its registration and its end is deleted here; logs name it."""
    caplog.set_level(logging.INFO, "asana_webhooks")
    hold = stage.here.fake.hold("createWebhook", when="before_answer")
    establishing = asyncio.create_task(stage.here.establish(label="tenant"))
    await hold.reached()
    closing = Stuck(stage.here.store, "close_registration")
    removing = asyncio.create_task(remove_webhook(stage.here.asana, cast("Store", closing), **TENANT))
    await closing.reached.wait()
    hold.release()
    stage.made["a"] = await establishing
    closing.released.set()

    assert await removing
    assert stage.here.fake.webhooks == {}
    assert await stage.states() == {"a": RegistrationState.CLOSED}
    gid = stage.made["a"].webhook_gid
    assert f"removed webhook {gid} on 8675309 (label 'tenant')" in caplog.text


async def test_replaced_while_it_is_removed(stage: Stage) -> None:
    """The new one is removed, too: what is live is looked up again until there is none."""
    await one(stage)
    hold = stage.here.fake.hold("deleteWebhook")
    removing = asyncio.create_task(stage.remove(**TENANT))
    await hold.reached()
    await stage.here.establish(label="tenant", replaces=stage.made["a"].registration)
    hold.release()

    assert await removing
    assert stage.here.fake.webhooks == {}


@pytest.mark.slow
async def test_it_may_be_cancelled_at_every_step(stage: Stage) -> None:
    """Nothing is closed before it is deleted, and the next call finishes."""
    mine = evolve(stage.here, store=cast("Store", Dawdling(stage.here.store)))

    async def remove() -> None:
        await remove_webhook(mine.asana, mine.store, **TENANT)

    async def check() -> None:
        await stage.here.fake.settle()
        confirmed = await stage.here.store.list_registrations(state=RegistrationState.CONFIRMED)
        assert set(stage.here.fake.webhooks) <= {one.webhook_gid for one in confirmed}
        assert await stage.remove(**TENANT) is bool(confirmed)
        assert stage.here.fake.webhooks == {}
        await two(stage)

    await two(stage)
    assert await cancel_at_every_step(remove, check) > 10


async def fill(stage: Stage, number: int, *, label: str) -> list[str]:
    """Have webhooks on so many projects; return their gids."""
    gids = []
    for _ in range(number):
        gid = stage.here.fake.add_quiet_webhook()
        adopted = await stage.here.store.adopt_registration(
            f"{gid:0>64}",
            resource=stage.here.fake.webhook(gid).resource.gid,
            public_url="https://example.com/receive-webhook",
            label=label,
            webhook_gid=gid,
            secret=Secret("5f3a9c27d1e84b60a7c2f19e3d5b8046"),
        )
        assert adopted
        gids.append(gid)
    return gids


@pytest.mark.parametrize("label", ["tenant", ""])
async def test_all_of_a_label(stage: Stage, label: str) -> None:
    """A tenant leaves: all of its webhooks go, ten at a time, more than a page of the store; nobody else's does."""
    await fill(stage, 205, label=label)
    others = await fill(stage, 3, label="another")
    hold = stage.here.fake.hold("deleteWebhook", times=None)
    removing = asyncio.create_task(remove_webhooks(stage.here.asana, stage.here.store, label=label))
    await hold.reached(10)
    await stage.here.fake.settle()
    assert hold.waiting == 10
    hold.release()

    assert await removing == 205
    assert list(stage.here.fake.webhooks) == others
    assert await remove_webhooks(stage.here.asana, stage.here.store, label=label) == 0


async def test_pairs_and_pending_ones_of_a_label(stage: Stage) -> None:
    """Both of a pair count, and so does one that is being created: that process deletes its webhook."""
    await two(stage)
    hold = stage.here.fake.hold("createWebhook", when="before_answer")
    establishing = asyncio.create_task(stage.here.establish(label="tenant", resource=stage.here.fake.add_project()))
    await hold.reached()

    assert await remove_webhooks(stage.here.asana, stage.here.store, label="tenant") == 3
    hold.release()
    [error] = await asyncio.gather(establishing, return_exceptions=True)
    assert isinstance(error, AsanaError)
    assert stage.here.fake.webhooks == {}


async def test_one_that_fails_does_not_stop_the_others(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Each failure is logged, the first one is raised after all others are gone, and the next call does the rest."""
    gids = await fill(stage, 30, label="tenant")
    stage.here.fake.script(*(Fault(at="deleteWebhook", webhook=gids[index], status=403) for index in (3, 20)))
    with pytest.raises(WebhookNotVisibleError):
        await remove_webhooks(stage.here.asana, stage.here.store, label="tenant")

    assert list(stage.here.fake.webhooks) == [gids[3], gids[20]]
    assert caplog.text.count("removing the webhook on resource") == 2
    assert await remove_webhooks(stage.here.asana, stage.here.store, label="tenant") == 2


async def test_what_stops_all(stage: Stage) -> None:
    """A refused token, or a store that fails: the error comes out by itself, and what is left stays live."""
    gids = await fill(stage, 50, label="tenant")
    async with AsanaSession("wrong", base_url=stage.here.fake.url) as stranger:
        with pytest.raises(NotAuthorizedError):
            await remove_webhooks(stranger, stage.here.store, label="tenant")
    assert len(stage.here.fake.requests) <= 20  # ten, and those whose turn came before the rest was stopped
    with pytest.raises(StoreUnavailableError):
        await remove_webhooks(stage.here.asana, troubled(stage.here.store, "close_registration"), label="tenant")

    confirmed = await stage.here.store.list_registrations(state=RegistrationState.CONFIRMED)
    assert [one.webhook_gid for one in confirmed] == gids
    assert await remove_webhooks(stage.here.asana, stage.here.store, label="tenant") == 50
    assert stage.here.fake.webhooks == {}
