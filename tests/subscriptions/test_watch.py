"""watch_webhooks: each change is told once, and what is wanted is repaired."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from attrs import define

from asana_webhooks import (
    ConfigurationError,
    EnsuredWebhook,
    Gap,
    Receiver,
    StoreUnavailableError,
    WantedWebhook,
    WebhookChange,
    WebhookFilter,
    ensure_webhook,
    remove_webhook,
    watch_webhooks,
)
from asana_webhooks.subscriptions import health
from asana_webhooks.testing import Fault, serve_receiver
from tests.subscriptions.scenes import Scene, arrived, live, troubled
from tests.subscriptions.times import HOUR, Rounds, earlier, port_of

FILTERS = (WebhookFilter(resource_type="task", action="changed"),)


@define
class Watching:
    """A watch that runs, and what it has told since it was asked last."""

    here: Scene
    rounds: Rounds
    task: "asyncio.Task[None]"
    told: list[WebhookChange]

    async def next(self) -> list[WebhookChange]:
        """Let it look once more; return what it tells."""
        self.told.clear()
        looking = asyncio.create_task(self.rounds.next())
        await asyncio.wait({looking, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            looking.cancel()
            await self.task
        return list(self.told)

    async def texts(self) -> list[str]:
        """Let it look once more; return the verdicts before and now."""
        return [f"{one.before} {'removed' if one.removed else one.health.verdict}" for one in await self.next()]


@asynccontextmanager
async def watching(
    here: Scene, monkeypatch: pytest.MonkeyPatch, *wanted: WantedWebhook, **options: Any
) -> AsyncIterator[Watching]:
    """Run a watch."""
    rounds, told = Rounds(), list[WebhookChange]()
    usual: dict[str, Any] = {"public_url": here.public_url, "workspace": here.fake.workspace, "on_change": told.append}
    with monkeypatch.context() as patch:
        patch.setattr(health, "asyncio", rounds)
        task = asyncio.create_task(watch_webhooks(here.asana, here.store, wanted, **(usual | options)))
        try:
            yield Watching(here, rounds, task, told)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def ensure(here: Scene, **options: Any) -> EnsuredWebhook:
    usual = {"resource": here.fake.projects[0], "public_url": here.public_url}
    return await ensure_webhook(here.asana, here.store, **(usual | options))


async def test_each_change_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first what is neither ok nor new is told, and then what changes, until a webhook is no longer there."""
    async with earlier(0) as (here, receiving):
        first, other = await ensure(here), await ensure(here, resource=here.fake.add_project())
        here.fake.webhook(other.webhook_gid).active = False
        async with watching(here, monkeypatch, every=77) as watched:
            [change] = await watched.next()
            assert (change.health.webhook_gid, change.before, change.resolved) == (other.webhook_gid, None, False)
            assert await watched.next() == []
            here.fake.webhook(other.webhook_gid).active = True
            assert await watched.texts() == ["inactive ok"]
            assert await watched.next() == []

            await receiving.aclose()
            here.fake.change(here.fake.projects[0], field="name")
            await here.fake.settle()
            assert await watched.texts() == ["ok failing"]
            async with serve_receiver(Receiver(here.store), port=port_of(here.public_url)):
                await here.fake.advance(3600)
            [change] = await watched.next()
            assert (change.before, change.health.verdict, change.resolved) == ("failing", "ok", True)

            del here.fake.webhooks[first.webhook_gid]
            assert await watched.texts() == ["ok gone"]
            assert await watched.next() == []
            await remove_webhook(here.asana, here.store, resource=here.fake.projects[0])
            [change] = await watched.next()
            assert (change.removed, change.resolved, change.health.webhook_gid) == (True, True, first.webhook_gid)
            assert str(change).startswith(f"no longer there: gone: webhook {first.webhook_gid} on ")
            await remove_webhook(here.asana, here.store, webhook_gid=other.webhook_gid)
            assert await watched.next() == []
            assert set(watched.rounds.slept) == {77}
        assert len(here.fake.webhooks) == 0


async def test_a_webhook_that_asana_deleted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After 25 hours without a receiver, the wanted webhook is created again; the change says what may be missing.

    Webhooks that are not wanted and those of other labels are left as they are.
    """
    async with earlier(25) as (here, receiving):
        wanted = WantedWebhook(here.fake.projects[0], FILTERS)
        old, unwanted = await ensure(here, filters=FILTERS), await ensure(here, resource=here.fake.add_project())
        await ensure(here, label="other")
        await receiving.aclose()
        task = here.fake.add_task()
        began = here.fake.clock.now()
        for gid in (task, unwanted.webhook.resource.gid if unwanted.webhook.resource else ""):
            here.fake.change(gid, field="name")
        await here.fake.advance(25 * HOUR)
        assert here.fake.webhooks == {}
        async with (
            serve_receiver(Receiver(here.store), port=port_of(here.public_url)),
            watching(here, monkeypatch, wanted, repair=True) as watched,
        ):
            by_gid = {one.health.webhook_gid: one for one in await watched.next()}
            assert by_gid.keys() == {old.webhook_gid, unwanted.webhook_gid}
            left, change = by_gid[unwanted.webhook_gid], by_gid[old.webhook_gid]
            assert (left.health.verdict, left.ensured, left.gap, left.resolved) == ("gone", None, None, False)
            assert change.ensured is not None
            assert change.gap is not None
            [new] = here.fake.webhooks.values()
            assert (change.health.verdict, change.resolved, change.error) == ("gone", True, None)
            assert (change.ensured.action, change.ensured.webhook_gid) == ("created", new.gid)
            assert new.filters == FILTERS
            assert change.gap == Gap(here.fake.projects[0], change.health.last_sign_at, new.created_at)
            assert abs(change.gap.since - began) < timedelta(seconds=1)
            assert await watched.next() == []

            here.fake.change(task, field="name")
            await here.fake.settle()
            assert [one.webhook_gid for one in await arrived(here.store)] == [new.gid]
    said = f"{old.webhook_gid} on {here.fake.projects[0]}: Asana or someone has deleted it; repaired: created webhook"
    assert f"gone: webhook {said} {new.gid}; events may be missing from {began:%Y-%m-%d %H:%M} to" in caplog.text


async def test_a_deaf_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a wanted resource's only webhook is deaf, another one is created, once; a gap is told only if there is one."""
    async with earlier(1) as (here, _):
        first = await ensure(here)
        began = here.fake.clock.now()
        await here.store.close_registration(first.registration)
        await here.fake.advance(HOUR)
        async with watching(here, monkeypatch, WantedWebhook(here.fake.projects[0]), repair=True) as watched:
            [change] = await watched.next()
            assert (change.health.verdict, change.ensured and change.ensured.action) == ("deaf", "created")
            assert change.gap is not None
            assert abs(change.gap.since - began) < timedelta(seconds=1)
            assert await live(here.fake) == set(here.fake.webhooks) != {first.webhook_gid}
            assert await watched.next() == []

            record = here.fake.webhook(next(iter(here.fake.webhooks)))
            stranger = here.fake.webhook(here.fake.add_quiet_webhook())
            stranger.target, stranger.resource = f"{here.public_url}/of-another-store-7654", record.resource
            stranger.last_success_at = here.fake.clock.now()
            [change] = await watched.next()
            assert (change.health.verdict, change.ensured and change.ensured.action) == ("deaf", "unchanged")
            assert (change.gap, change.resolved) == (None, True)
            here.fake.requests.clear()
            assert await watched.next() == []
            assert [one.operation for one in here.fake.requests] == ["getWebhooks"]
            del here.fake.webhooks[stranger.gid]
            assert await watched.next() == []


async def test_while_asana_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is repaired then, not even what was gone before, and nothing is called removed."""
    async with earlier(0) as (here, _):
        established, wanted = await ensure(here), WantedWebhook(here.fake.projects[0])
        deaf = await here.establish(resource=here.fake.add_project())
        await here.store.close_registration(deaf.registration)
        async with watching(here, monkeypatch, wanted, repair=True) as watched:
            assert await watched.texts() == ["None deaf"]
            here.fake.script(Fault(at="*", status=401), Fault(at="*", status=503, times=None))
            assert await watched.texts() == ["ok unknown"]
            assert await watched.next() == []
            del here.fake.webhooks[established.webhook_gid]
            here.fake.requests.clear()
            assert await watched.next() == []
            assert {one.operation for one in here.fake.requests} == {"getWebhooks"}

            # The list is there again, and says that it is gone; but nobody can be asked about it.
            here.fake.faults.clear()
            here.fake.script(Fault(at="getWebhook", status=503, times=None))
            assert await watched.next() == []
            here.fake.faults.clear()
            [change] = await watched.next()
            assert (change.before, change.health.verdict) == ("unknown", "gone")
            assert change.ensured is not None


async def test_a_repair_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, tried again in each round in which Asana can be asked, and told when it has succeeded."""
    async with earlier(1) as (here, _):
        established, wanted = await ensure(here, label="seven"), WantedWebhook(here.fake.projects[0])
        await here.fake.advance(HOUR)
        del here.fake.webhooks[established.webhook_gid]
        here.fake.script(Fault(at="createWebhook", status=403, times=2))
        async with watching(here, monkeypatch, wanted, repair=True, label="seven") as watched:
            [change] = await watched.next()
            assert (change.before, change.health.verdict, change.resolved) == (None, "gone", False)
            assert "createWebhook: Asana answered 403" in str(change.error)
            here.fake.requests.clear()
            assert await watched.next() == []
            assert [one.operation for one in here.fake.requests] == ["getWebhooks", "createWebhook"]

            here.fake.script(Fault(at="getWebhooks", status=503, times=2))
            here.fake.requests.clear()
            assert await watched.next() == []
            assert {one.operation for one in here.fake.requests} == {"getWebhooks"}

            [again] = await watched.next()
            assert again.ensured is not None
            assert {one.label for one in await here.store.list_registrations()} == {"seven"}
            assert again.gap is not None
            assert (again.health, again.error, again.resolved) == (change.health, None, True)
            assert await watched.next() == []
    assert caplog.text.count("repairing it failed: ") == 1


def raising(_: WebhookChange) -> None:
    raise ValueError("a handler's own mistake")


async def raising_later(change: WebhookChange) -> None:
    await asyncio.sleep(0)
    raising(change)


async def cancelled_elsewhere(_: WebhookChange) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("on_change", [raising, raising_later, cancelled_elsewhere])
async def test_what_on_change_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, on_change: Callable[[WebhookChange], object]
) -> None:
    """It is logged, and the watch goes on."""
    async with earlier(0) as (here, _):
        established = await ensure(here)
        async with watching(here, monkeypatch, on_change=on_change) as watched:
            await watched.next()
            for active in (False, True):
                here.fake.webhook(established.webhook_gid).active = active
                await watched.next()
    assert caplog.text.count("the watch goes on") == 2
    assert ("a handler's own mistake" in caplog.text) is (on_change is not cancelled_elsewhere)


async def test_an_async_function_is_told_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten repairs end at about the same time; it is not called again before it has returned."""
    begun, ended = list[WebhookChange](), list[WebhookChange]()

    async def on_change(change: WebhookChange) -> None:
        begun.append(change)
        assert len(begun) == len(ended) + 1
        await asyncio.sleep(0)
        ended.append(change)

    async with earlier(0) as (here, _):
        wanted = [WantedWebhook(here.fake.add_project()) for _ in range(10)]
        for one in wanted:
            await ensure(here, resource=one.resource)
        here.fake.webhooks.clear()
        async with watching(here, monkeypatch, *wanted, repair=True, on_change=on_change) as watched:
            await watched.next()
        assert {one.health.resource for one in ended if one.ensured} == {one.resource for one in wanted}


async def test_a_store_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, nothing is told, and the next round tries again."""
    async with earlier(0) as (here, _):
        await ensure(here)
        broken = Scene(here.fake, here.asana, troubled(here.store, "list_registrations"), here.public_url)
        async with watching(broken, monkeypatch, every=5) as watched:
            assert [await watched.next(), await watched.next()] == [[], []]
    assert caplog.text.count("checking the webhooks failed; retrying in 5 s: disk I/O error") == 2


@pytest.mark.parametrize("when", ["asleep", "checking", "telling"])
async def test_cancelling(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """It ends at once, whatever it does."""
    async with earlier(0) as (here, _):
        established = await ensure(here)
        here.fake.webhook(established.webhook_gid).active = False
        reached = asyncio.Event()

        async def on_change(_: WebhookChange) -> None:
            reached.set()
            await asyncio.Event().wait()

        hold = here.fake.hold("getWebhooks") if when == "checking" else None
        options = {"on_change": on_change if when == "telling" else None}
        async with watching(here, monkeypatch, **options) as watched:
            if when == "asleep":
                await watched.next()
            elif hold is not None:
                await hold.reached()
            else:
                await reached.wait()
            watched.task.cancel()
            await asyncio.wait({watched.task}, timeout=5)
            assert watched.task.cancelled()
        if hold is not None:
            hold.release()


async def test_two_watches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that repair the same webhooks make one of each, and both tell of it."""
    async with earlier(1) as (here, _):
        wanted = [WantedWebhook(here.fake.add_project()) for _ in range(5)]
        for one in wanted:
            await ensure(here, resource=one.resource)
        await here.fake.advance(HOUR)
        here.fake.webhooks.clear()
        rounds, told = Rounds(), (list[WebhookChange](), list[WebhookChange]())
        monkeypatch.setattr(health, "asyncio", rounds)
        where: dict[str, Any] = {"public_url": here.public_url, "workspace": here.fake.workspace}
        async with asyncio.TaskGroup() as group:
            watches = [
                group.create_task(
                    watch_webhooks(here.asana, here.store, wanted, on_change=one.append, repair=True, **where)
                )
                for one in told
            ]
            await rounds.asleep(2)
            for one_watch in watches:
                one_watch.cancel()
        assert len(here.fake.webhooks) == 5
        for changes in told:
            assert {one.health.resource for one in changes} == {one.resource for one in wanted}
            assert all(one.gap is not None and one.resolved for one in changes)


async def test_one_round() -> None:
    """Without *every* it checks and repairs once, and returns. A failing store is raised then."""
    async with earlier(1) as (here, _):
        old = await ensure(here)
        await here.fake.advance(HOUR / 2)
        here.fake.webhooks.clear()
        told = list[WebhookChange]()
        where: dict[str, Any] = {"public_url": here.public_url, "workspace": here.fake.workspace, "every": None}
        wanted = [WantedWebhook(here.fake.projects[0])]
        await watch_webhooks(here.asana, here.store, wanted, on_change=told.append, repair=True, **where)
        [change] = told
        assert (change.health.webhook_gid, change.health.verdict) == (old.webhook_gid, "gone")
        assert change.ensured is not None
        assert list(here.fake.webhooks) == [change.ensured.webhook_gid]
        assert change.gap is not None
        with pytest.raises(StoreUnavailableError):
            await watch_webhooks(here.asana, troubled(here.store, "list_registrations"), wanted, **where)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "every": ({"every": 0}, "every must be"),
    "on_change": ({"on_change": "print"}, "on_change must be a function, not str"),
    "wanted": ({"wanted": ["8675309"]}, "wanted must be WantedWebhook objects, not str"),
    "public_url": ({"public_url": "asana"}, "public_url must be"),
    "workspace": ({"workspace": ""}, "workspace must be a gid"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_mistakes(name: str) -> None:
    """They are raised before anything is sent."""
    async with earlier(0) as (here, _):
        options, message = WRONG[name]
        usual = {"wanted": [], "public_url": here.public_url, "workspace": here.fake.workspace}
        with pytest.raises(ConfigurationError, match=message):
            await watch_webhooks(here.asana, here.store, **(usual | options))
        assert here.fake.requests == []
