"""check_webhooks: how well the webhooks are, from what Asana says and what has come through them."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from asana_webhooks import (
    AsanaSession,
    ConfigurationError,
    MemoryStore,
    NotAuthorizedError,
    Receiver,
    StoreUnavailableError,
    WebhookHealth,
    adopt_webhook,
    check_webhooks,
    ensure_webhook,
    establish_webhook,
)
from asana_webhooks.store.base import Store
from asana_webhooks.testing import Fault, serve_receiver
from tests.subscriptions.scenes import Scene, troubled
from tests.subscriptions.times import HOUR, answering, earlier


async def check(here: Scene, **options: Any) -> tuple[WebhookHealth, ...]:
    """Check the webhooks of a scene, and forget the requests before."""
    here.fake.requests.clear()
    usual = {"public_url": here.public_url, "workspace": here.fake.workspace}
    return await check_webhooks(here.asana, here.store, **(usual | options))


async def verdicts(here: Scene, **options: Any) -> list[str]:
    return [one.verdict for one in await check(here, **options)]


def asked(here: Scene) -> Counter[str | None]:
    return Counter(one.operation for one in here.fake.requests)


@pytest.mark.parametrize(
    ("hours", "verdict"), [(0.0, "ok"), (3.0, "failing"), (20.0, "failing"), (23.5, "failing"), (25.0, "gone")]
)
async def test_receivers_that_fail(hours: float, verdict: str) -> None:
    """Before Asana deletes a webhook, the check says when, and what the target says; then it says that it is gone."""
    async with earlier(hours) as (here, receiving):
        established = await here.establish()
        began = here.fake.clock.now()
        await receiving.aclose()
        async with answering(here.public_url, 502):
            if hours:
                here.fake.change(here.fake.projects[0], field="name")
                await here.fake.advance(hours * HOUR)
            [health] = await check(here)

    assert (health.verdict, health.webhook_gid, health.resource) == (
        *(verdict, established.webhook_gid, here.fake.projects[0]),
    )
    assert abs(health.last_sign_at - began) < timedelta(seconds=1)
    assert (health.deleted_at is not None, "was not found" in health.last_failure) == ((verdict == "failing",) * 2)
    if health.deleted_at is not None:
        assert abs(health.deleted_at - began - timedelta(hours=24)) < timedelta(seconds=1)
        assert f"Asana deletes it at {health.deleted_at:%Y-%m-%d %H:%M} UTC" in str(health)
        endpoint = here.fake.webhook(established.webhook_gid).target.rpartition("/")[2]
        assert endpoint in health.last_failure
        assert endpoint not in f"{health} {health!r}"


NOTHING_COMES = [(0, 0, "new"), (7, 0, "new"), (9.1, 0, "silent"), (9.1, 1, "ok"), (17.1, 1, "silent")]


@pytest.mark.parametrize(("hours", "heartbeats", "verdict"), NOTHING_COMES)
async def test_nothing_comes(hours: float, heartbeats: int, verdict: str) -> None:
    """An adopted webhook is new until something comes through it. If nothing comes for nine hours, it is silent."""
    async with earlier(hours, heartbeat=None) as (here, _):
        await other_store(here)
        [gid] = here.fake.webhooks
        await adopt_webhook(here.asana, here.store, webhook_gid=gid, secret=here.fake.secret(gid))
        here.fake.script(Fault(at="heartbeat", do="lose", after=heartbeats, times=None))
        await here.fake.advance(hours * HOUR)
        [health] = await check(here)
        assert health.verdict == verdict
        assert ("nothing was stored since" in health.reason) is (verdict == "silent")
        assert "something else answers" not in health.reason
        assert await verdicts(here, silent_after=100 * HOUR) == ["ok" if heartbeats else "new"]


async def test_something_else_answers() -> None:
    """If Asana says that deliveries succeed, and nothing is stored, something else answers in the receivers' place."""
    async with earlier(10) as (here, receiving):
        await here.establish()
        await receiving.aclose()
        async with answering(here.public_url, 200):
            await here.fake.advance(10 * HOUR)
            [health] = await check(here)
    assert health.verdict == "silent"
    assert "something else answers in the receivers' place" in health.reason


async def test_an_inactive_webhook() -> None:
    """It is told as such, whatever else is wrong with it."""
    async with earlier(30) as (here, _):
        established = await here.establish()
        here.fake.webhook(established.webhook_gid).active = False
        await here.fake.advance(30 * HOUR)
        assert await verdicts(here) == ["inactive"]


async def other_store(here: Scene) -> None:
    """Create a webhook below the public URL from another store."""
    async with MemoryStore() as store, serve_receiver(Receiver(store)) as url:
        made = await establish_webhook(here.asana, store, resource=here.fake.projects[0], public_url=url)
    record = here.fake.webhook(made.webhook_gid)
    record.target = record.target.replace(url, here.public_url)


async def closed(here: Scene, label: str = "") -> None:
    """Leave a webhook whose registration is closed."""
    established = await here.establish(label=label)
    await here.store.close_registration(established.registration)


async def endpoint_twice(here: Scene) -> None:
    """Create a second webhook with the target of the first, on another resource."""
    established = await here.establish()
    target = here.fake.webhook(established.webhook_gid).target
    async with MemoryStore() as store, serve_receiver(Receiver(store)) as url:
        made = await establish_webhook(here.asana, store, resource=here.fake.add_project(), public_url=url)
    here.fake.webhook(made.webhook_gid).target = target


async def elsewhere(here: Scene) -> None:
    """Leave a webhook with another public URL."""
    await other_store(here)
    here.fake.webhook(next(iter(here.fake.webhooks))).target = "https://example.com/asana/7654"


DEAF = {
    "of another store": (other_store, ["deaf: this store does not know its endpoint"]),
    "closed": (closed, ["deaf: its registration is closed"]),
    "closed, of another label": (lambda here: closed(here, "seven"), []),
    "with the endpoint of another": (endpoint_twice, ["deaf: its endpoint belongs to", "ok: Asana's last successful"]),
    "elsewhere": (elsewhere, []),
}


@pytest.mark.parametrize("case", DEAF)
async def test_deaf_webhooks(case: str) -> None:
    """A webhook is deaf if it posts below the public URL, and the store cannot verify what it sends."""
    make, expected = DEAF[case]
    async with earlier(0) as (here, _):
        await make(here)
        found = sorted(f"{one.verdict}: {one.reason}" for one in await check(here))
        assert len(found) == len(expected)
        assert [text for text, start in zip(found, expected, strict=True) if not text.startswith(start)] == []


@pytest.mark.parametrize(("hours", "expected"), [(0, []), (1, ["deaf"])])
async def test_a_webhook_being_created(hours: float, expected: list[str]) -> None:
    """It is none yet, and neither deaf nor gone; but if the process was killed, it is deaf when its time is over."""
    async with earlier(hours) as (here, _):
        hold = here.fake.hold("createWebhook", when="before_answer")
        creating = asyncio.create_task(here.establish())
        await hold.reached()
        assert len(here.fake.webhooks) == 1
        assert await verdicts(here) == expected
        hold.release()
        await creating
        assert await verdicts(here) == ["ok"]


async def test_two_labels() -> None:
    """Each check is about the webhooks of its label, whatever happens to the others."""
    async with earlier(0) as (here, _):
        first, second, third = [await here.establish(label=label) for label in ("", "seven", "eight")]
        del here.fake.webhooks[second.webhook_gid]
        await here.store.close_registration(third.registration)
        for label, expected in {"": ["ok"], "seven": ["gone"], "eight": ["deaf"], "nine": []}.items():
            found = await check(here, label=label)
            assert [one.verdict for one in found] == expected
            assert {one.label for one in found} <= {label}
            assert (f"(label '{label}')" in "".join(map(str, found))) is (label in ("seven", "eight"))
        assert first.webhook_gid in here.fake.webhooks


async def test_what_it_asks() -> None:
    """One list call per 100 webhooks, and one GET for each that the list lacks, ten at the same time."""
    async with earlier(0) as (here, _):
        for project in [here.fake.add_project() for _ in range(110)]:
            await here.establish(resource=project)
        assert set(await verdicts(here)) == {"ok"}
        assert asked(here) == {"getWebhooks": 2}

        here.fake.script(Fault(at="getWebhooks", status=200, body='{"data": [], "next_page": null}'))
        gone = next(iter(here.fake.webhooks))
        del here.fake.webhooks[gone]
        hold = here.fake.hold("getWebhook", times=None)
        checking = asyncio.create_task(check(here))
        await hold.reached(10)
        await here.fake.settle()
        assert hold.held == 10
        hold.release()
        found = await checking
        assert Counter(one.verdict for one in found) == {"ok": 109, "gone": 1}
        assert [one.webhook_gid for one in found if one.verdict == "gone"] == [gone]
        assert asked(here) == {"getWebhooks": 1, "getWebhook": 110}


async def test_asana_is_down() -> None:
    """If the list cannot be had, every webhook is unknown, with the reason, and nothing more is asked."""
    async with earlier(0) as (here, _):
        first = await here.establish()
        await here.establish(resource=here.fake.add_project())
        here.fake.script(Fault(at="*", status=503, times=None))
        found = await check(here)
        assert [one.verdict for one in found] == ["unknown"] * 2
        assert all("Asana could not be asked: getWebhooks: Asana answered 503" in one.reason for one in found)
        assert set(asked(here)) == {"getWebhooks"}

        here.fake.faults.clear()
        here.fake.script(
            Fault(at="getWebhooks", status=200, body='{"data": []}'),
            Fault(at="getWebhook", status=503, webhook=first.webhook_gid, times=None),
        )
        assert sorted(await verdicts(here)) == ["ok", "unknown"]


async def test_a_token_that_is_refused() -> None:
    """That is an error: nobody can tell anything until there is another token."""
    async with earlier(0) as (here, _):
        await here.establish()
        here.fake.script(Fault(at="getWebhooks", status=401))
        with pytest.raises(NotAuthorizedError, match="getWebhooks: Asana answered 401"):
            await check(here)
        assert await verdicts(here) == ["ok"]


async def test_a_token_that_sees_nothing() -> None:
    """Webhooks of another user are unknown, and not gone."""
    async with earlier(0) as (here, _):
        await here.establish()
        app = here.fake.register_app("7", user="12")
        async with AsanaSession(app.access_token, base_url=here.fake.url) as stranger:
            [health] = await check_webhooks(
                stranger, here.store, public_url=here.public_url, workspace=here.fake.workspace
            )
        assert health.verdict == "unknown"
        assert "Use a token of the app and user that created it" in health.reason


async def test_removed_meanwhile() -> None:
    """A webhook that is removed while it is looked for is not called gone."""
    async with earlier(0) as (here, _):
        established = await here.establish()
        del here.fake.webhooks[established.webhook_gid]
        hold = here.fake.hold("getWebhook")
        checking = asyncio.create_task(verdicts(here))
        await hold.reached()
        await here.store.close_registration(established.registration)
        hold.release()
        assert await checking == []


async def test_a_replaced_webhook() -> None:
    """Of a pair, both are told of; the old one is left out once it is deleted, though it is still accepted."""
    async with earlier(0) as (here, _):
        old = await here.establish()
        new = await here.establish(replaces=old.registration)
        assert await verdicts(here) == ["ok", "ok"]
        del here.fake.webhooks[old.webhook_gid]
        assert [one.webhook_gid for one in await check(here)] == [new.webhook_gid]


async def test_what_cannot_be_checked() -> None:
    """Mistakes and a store that fails are errors; no verdict hides them."""
    async with earlier(0) as (here, _):
        await ensure_webhook(here.asana, here.store, resource=here.fake.projects[0], public_url=here.public_url)
        for wrong in ({"public_url": "asana"}, {"workspace": "x"}, {"label": 7}, {"silent_after": 0}):
            with pytest.raises(ConfigurationError, match=next(iter(wrong))):
                await check(here, **wrong)
        with pytest.raises(ConfigurationError, match="session first"):
            await check_webhooks(here.store, here.asana, public_url="", workspace="1")  # type: ignore[arg-type]
        broken: Store = troubled(here.store, "list_registrations")
        with pytest.raises(StoreUnavailableError):
            await check_webhooks(here.asana, broken, public_url=here.public_url, workspace=here.fake.workspace)
        await here.asana.aclose()
        with pytest.raises(ConfigurationError, match="closed"):
            await check(here)
