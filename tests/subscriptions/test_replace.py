"""replace_webhook: a webhook moves or gets a new secret.

While it sleeps, the fake's clock goes on.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from asana_webhooks import (
    AsanaError,
    ConfigurationError,
    NotFoundError,
    WebhookNotVisibleError,
    remove_webhook,
    replace_webhook,
)
from asana_webhooks.testing import Fault
from tests.helpers.raw import later
from tests.subscriptions.moves import CLOSED, CONFIRMED, FILTERS, Moving, moving
from tests.subscriptions.scenes import arrived
from tests.subscriptions.times import HOUR


@pytest.mark.slow
@pytest.mark.parametrize(("busy", "same_url"), [(True, False), (True, True), (False, False)])
async def test_a_move(monkeypatch: pytest.MonkeyPatch, busy: bool, same_url: bool) -> None:
    """The old webhook is deleted after the overlap if it is busy, or else after its next heartbeat, within eight hours.

    Its registration is closed a minute later. The new one has the same filters, and another secret.
    """
    async with moving(monkeypatch) as here:
        fake, began = here.here.fake, here.here.fake.clock.now()
        secret = fake.secret(here.old.webhook_gid)
        ended: list[datetime] = []

        async def advance(seconds: float) -> None:
            if here.old.webhook_gid not in fake.webhooks and not ended:
                ended.append(fake.clock.now())
                assert await here.states() == [CONFIRMED, CONFIRMED]
                assert seconds == 60
            await (here.busily if busy else fake.advance)(seconds)

        here.time.advance = advance
        replaced = await here.replace(**({"public_url": None} if same_url else {}))
        [new] = fake.webhooks.values()
        assert (replaced.webhook_gid, replaced.registration) == (new.gid, (await here.registrations())[1].id)
        assert (replaced.lost_since, replaced.orphans) == (None, 0)
        assert (new.filters, new.target.startswith(f"{here.here.public_url}/")) == (FILTERS, same_url)
        assert new.secret != secret
        assert await here.states() == [CLOSED, CONFIRMED]
        seconds = (ended[0] - began).total_seconds()
        assert 900 <= seconds < 962 if busy else 8 * HOUR - 61 < seconds < 8 * HOUR + 61
        again = await here.replace(public_url=None)
        assert (again.webhook_gid, again.registration) == (replaced.webhook_gid, replaced.registration)
        assert again.lost_since is None


async def test_how_much_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks Asana nothing during the overlap, and about both webhooks every five minutes from then on."""
    async with moving(monkeypatch) as here:
        here.here.fake.requests.clear()
        await here.replace(overlap=2 * HOUR, longest_wait=3 * HOUR)
        gets = [one for one in here.here.fake.requests if one.operation == "getWebhook"]
        assert 24 < len(gets) < 32
        assert max(here.time.slept) == 300


async def test_what_is_to_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Asana has something of the old webhook to send again, it is not deleted, however long the overlap is over.

    So what happened before the new one was created arrives.
    """
    async with moving(monkeypatch) as here:
        fake, began = here.here.fake, here.here.fake.clock.time()
        here.doors[0].down = True
        here.sends()
        await fake.settle()

        async def advance(seconds: float) -> None:
            await fake.advance(seconds)
            here.doors[0].down = fake.clock.time() < began + 5 * HOUR

        here.time.advance = advance
        replaced = await here.replace()
        assert replaced.lost_since is None
        assert fake.clock.time() - began > 5 * HOUR
        assert [len(one.events) for one in await arrived(here.here.store)] == [1]


async def test_the_longest_wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After it, the old webhook is deleted in any case, and the result says from when on events may be lost."""
    async with moving(monkeypatch) as here:
        fake = here.here.fake
        began = fake.webhook(here.old.webhook_gid).last_success_at
        here.doors[0].down = True
        here.sends()
        created = fake.clock.time()
        replaced = await here.replace(longest_wait=2 * HOUR)
        assert 2 * HOUR <= fake.clock.time() - created < 2 * HOUR + 180
        assert replaced.lost_since is not None
        assert began is not None
        assert abs(replaced.lost_since - began) < timedelta(milliseconds=1)
    assert f"events may be lost: from {replaced.lost_since:%Y-%m-%d %H:%M:%S} UTC on" in caplog.text


async def test_ensure_after_the_longest_wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If `ensure_webhook` is the one that ends such a move, its log says from when on events may be lost."""
    async with moving(monkeypatch) as here:
        here.doors[0].down = True
        here.sends()
        await here.begin()
        await here.here.fake.advance(9 * HOUR)
        monkeypatch.setattr("asana_webhooks.subscriptions.ensure.time", here.time)
        ensured = await here.ensure()
        assert list(here.here.fake.webhooks) == [ensured.webhook_gid]
    assert f"webhook {ensured.webhook_gid} on {here.here.fake.projects[0]}; events may be lost: from 20" in caplog.text


async def test_a_leaked_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """With *now* nothing is accepted any more with the old secret, not even while the old webhook cannot be deleted.

    If it is interrupted then, the next call says what may be lost, too.
    """
    async with moving(monkeypatch) as here:
        fake = here.here.fake
        here.sends()
        await fake.settle()
        seen = fake.webhook(here.old.webhook_gid).last_success_at
        hold = fake.hold("deleteWebhook")
        replacing = asyncio.create_task(here.replace(now=True, public_url=None))
        await hold.reached()
        assert await here.states() == [CLOSED, CONFIRMED]
        assert (await here.registrations())[0].retire_after is None
        replacing.cancel()
        await asyncio.wait({replacing})
        hold.release()
        await fake.settle()
        replaced = await here.replace(now=True, public_url=None)
        assert list(fake.webhooks) == [replaced.webhook_gid]
        assert seen is not None
        assert replaced.lost_since is not None
        assert timedelta(0) <= seen - replaced.lost_since < timedelta(minutes=1)  # a store notes the minute
        assert here.time.slept == []


async def test_a_leaked_secret_while_asana_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old secret is refused although Asana can be asked nothing about the old webhook; the next call deletes it."""
    async with moving(monkeypatch) as here:
        here.sends()
        await here.here.fake.settle()
        seen = here.here.fake.webhook(here.old.webhook_gid).last_success_at
        down = Fault(at="getWebhook", status=503, webhook=here.old.webhook_gid, after=1, times=None)
        here.here.fake.script(down)
        with pytest.raises(AsanaError, match="503"):
            await here.replace(now=True)
        assert await here.states() == [CLOSED, CONFIRMED]
        here.here.fake.faults.clear()
        replaced = await here.replace(now=True)
        assert list(here.here.fake.webhooks) == [replaced.webhook_gid]
        assert seen is not None
        assert replaced.lost_since is not None
        assert abs(replaced.lost_since - seen) < timedelta(milliseconds=1)


@pytest.mark.parametrize("goes_on", ["replace", "without url", "now", "ensure"])
async def test_an_interrupted_move(monkeypatch: pytest.MonkeyPatch, goes_on: str) -> None:
    """Both webhooks stay, with either URL; the next call goes on with them, and begins no new overlap."""
    async with moving(monkeypatch, hours=0) as here:
        fake = here.here.fake
        await here.begin()
        assert await here.states() == [CONFIRMED, CONFIRMED]
        both = list(fake.webhooks)
        assert len(both) == 2
        for url, gid in zip((here.here.public_url, here.new_url), both, strict=True):
            ensured = await here.ensure(public_url=url)
            assert (ensured.webhook_gid, ensured.action) == (gid, "unchanged")
        assert {one.verdict for one in await here.check()} == {"ok"}
        assert list(fake.webhooks) == both

        await fake.advance(800)
        here.sends()
        await fake.settle()
        began = fake.clock.time()
        if goes_on == "ensure":
            await fake.advance(101)
            monkeypatch.setattr("asana_webhooks.subscriptions.ensure.time", here.time)
            assert (await here.ensure()).action == "unchanged"
        elif goes_on == "now":
            assert (await here.replace(now=True)).lost_since is not None
            assert fake.clock.time() - began < 1
        else:
            replaced = await here.replace(**({} if goes_on == "replace" else {"public_url": None}))
            assert (replaced.webhook_gid, replaced.lost_since) == (both[1], None)
            assert 160 <= fake.clock.time() - began < 170
        assert list(fake.webhooks) == both[1:]
        assert await here.states() == [CLOSED, CONFIRMED]


async def test_a_pair_of_another_making(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that `establish_webhook` made gets an overlap, and then goes the same way."""
    async with moving(monkeypatch) as here:
        new = await here.here.establish(public_url=here.new_url, replaces=here.old.registration)
        began = here.here.fake.clock.time()
        here.time.advance = here.busily
        replaced = await here.replace()
        assert (replaced.webhook_gid, replaced.lost_since) == (new.webhook_gid, None)
        assert here.here.fake.clock.time() - began > 900


@pytest.mark.parametrize("gone", ["new", "old"])
async def test_one_is_gone(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    """If the new webhook is gone, another one is created. If the old one is, the result says what may be lost."""
    async with moving(monkeypatch) as here:
        fake = here.here.fake
        seen = (await here.registrations())[0].last_heartbeat_at
        await here.begin()
        both = list(fake.webhooks)
        del fake.webhooks[both[gone == "new"]]
        here.time.advance = here.busily
        replaced = await here.replace()
        assert list(fake.webhooks) == [replaced.webhook_gid]
        assert (replaced.webhook_gid in both) is (gone == "old")
        lost = replaced.lost_since.timestamp() if replaced.lost_since is not None else None
        assert lost == (pytest.approx(seen, abs=0.001) if gone == "old" else None)


@pytest.mark.parametrize(("operation", "calls"), [("createWebhook", 1), ("getWebhook", 2)])
async def test_two_at_once(monkeypatch: pytest.MonkeyPatch, operation: str, calls: int) -> None:
    """Two processes that replace the same webhook make one new one and return it, even if both begin together.

    The overlap begins when it is created.
    """
    async with moving(monkeypatch) as here:
        began = here.here.fake.clock.time()
        hold = here.here.fake.hold(operation, when="before_answer", times=calls)
        both = [asyncio.create_task(here.replace()) for _ in range(2)]
        await hold.reached(calls)
        await here.here.fake.advance(60)
        hold.release()
        here.time.advance = here.busily
        assert {(await one).webhook_gid for one in both} == set(here.here.fake.webhooks)
        creates = [one for one in here.here.fake.requests if one.operation == "createWebhook"]
        assert len(creates) == 2  # with that of the old one
        assert here.here.fake.clock.time() - began > 1019
        assert await here.states() == [CLOSED, CONFIRMED]


async def test_ensure_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """If `ensure_webhook` creates the new webhook just when a move begins, the old one stays as long as in any move."""
    async with moving(monkeypatch) as here:
        fake, began = here.here.fake, here.here.fake.clock.time()
        asked, created = fake.hold("getWebhook"), fake.hold("createWebhook", when="before_answer")
        replacing = asyncio.create_task(here.replace())
        await asked.reached()
        ensuring = asyncio.create_task(here.ensure())
        await created.reached()
        asked.release()
        while (await here.registrations())[0].retire_after is None:
            await later(0.01)
        here.time.advance = here.busily
        created.release()
        ensured, replaced = await ensuring, await replacing
        assert (ensured.action, ensured.webhook_gid, replaced.lost_since) == ("replaced", replaced.webhook_gid, None)
        assert list(fake.webhooks) == [replaced.webhook_gid]
        assert fake.clock.time() - began > 900


async def unknown(here: Moving) -> None:
    here.old = await here.ensure(label="other")
    await here.here.store.close_registration(here.old.registration)


async def removed(here: Moving) -> None:
    await remove_webhook(here.here.asana, here.here.store, webhook_gid=here.old.webhook_gid)


async def deleted(here: Moving) -> None:
    del here.here.fake.webhooks[here.old.webhook_gid]


async def hidden(here: Moving) -> None:
    here.here.fake.script(Fault(at="getWebhook", status=403, times=None))


async def moved_elsewhere(here: Moving) -> None:
    await here.begin()
    here.new_url = here.here.public_url


async def is_the_new_one(here: Moving) -> None:
    await here.begin()
    here.old = await here.ensure()


async def replaced_and_gone(here: Moving) -> None:
    await here.replace(now=True)
    here.here.fake.webhooks.clear()


MISTAKES: dict[str, tuple[Callable[[Moving], Any], type[Exception], str]] = {
    "removed": (removed, ConfigurationError, "is not live any more"),
    "closed": (unknown, ConfigurationError, "is not live any more"),
    "deleted": (deleted, NotFoundError, "Not a recognized ID"),
    "hidden": (hidden, WebhookNotVisibleError, "this token|Use a token"),
    "moved elsewhere": (moved_elsewhere, ConfigurationError, "being moved to another public_url"),
    "the new one": (is_the_new_one, ConfigurationError, "is replacing another one"),
    "replaced, and gone": (replaced_and_gone, NotFoundError, "Not a recognized ID"),
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_what_cannot_be_moved(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The error says why; nothing is created or deleted."""
    make, error, message = MISTAKES[name]
    async with moving(monkeypatch, hours=0) as here:
        await make(here)
        before = set(here.here.fake.webhooks)
        with pytest.raises(error, match=message):
            await here.replace()
        assert set(here.here.fake.webhooks) == before


async def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before anything is sent."""
    async with moving(monkeypatch) as here:
        here.here.fake.requests.clear()
        wrong = {"webhook_gid": "77", "public_url": "asana", "overlap": -1, "longest_wait": float("inf")}
        for name, value in wrong.items():
            with pytest.raises(ConfigurationError, match="adopt_webhook" if name == "webhook_gid" else name):
                await here.replace(**{name: value})
        with pytest.raises(ConfigurationError, match="session first"):
            await replace_webhook(here.here.store, here.here.asana, webhook_gid="1")  # type: ignore[arg-type]
        assert here.here.fake.requests == []
