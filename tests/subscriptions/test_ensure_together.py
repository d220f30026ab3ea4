"""ensure_webhook beside others: several at once, after a kill, while Asana resends, without the key, and cancelled."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import evolve
from cryptography.fernet import Fernet

from asana_webhooks import (
    AsanaSession,
    CreateOutcomeUnknownError,
    EnsuredWebhook,
    MemoryStore,
    Receiver,
    RegistrationClosedError,
    SecretUnavailableError,
    SQLiteStore,
    WebhookFilter,
    delete_webhook,
    remove_webhook,
)
from asana_webhooks.store.base import Registration, RegistrationState, Store
from asana_webhooks.store.secret_box import FernetBox
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver
from tests.helpers.cancelling import cancel_at_every_step, pass_turns
from tests.helpers.ports import free_port
from tests.helpers.stores import Clock
from tests.helpers.virtual import jumping_clock
from tests.subscriptions.scenes import Dawdling, Remembering, Scene, Stuck, arrived, live, scene

RENAMED = WebhookFilter(resource_type="project", action="changed")
ELSEWHERE = "?at=elsewhere"


class Counting(Remembering):
    """A store that knows how many registrations were ever live at once."""

    most = 0

    async def open_registration(self, id: str, **options: Any) -> bool:
        opened = await super().open_registration(id, **options)
        live = [one for one in await self.states() if one is not RegistrationState.CLOSED]
        self.most = max(self.most, len(live))
        return opened


def asked(here: Scene) -> Counter[str | None]:
    return Counter(one.operation for one in here.fake.requests)


async def confirmed(here: Scene) -> list[Registration]:
    return list(await here.store.list_registrations(state=RegistrationState.CONFIRMED))


@pytest.mark.parametrize("workspace", [None, "1331"])
@pytest.mark.parametrize("start", ["nothing", "elsewhere", "filters"])
@pytest.mark.parametrize("trouble", ["none", "429", "lost"])
async def test_ten_at_once(start: str, trouble: str, workspace: str | None) -> None:
    """One creates, and the others wait for it: all return the one webhook. Before that two are live at most."""
    store = Counting()
    async with scene(store) as here:
        if start == "elsewhere":
            await here.ensure(public_url=here.public_url + ELSEWHERE)
        if start == "filters":
            await here.ensure(filters=[RENAMED])
        here.fake.requests.clear()
        if trouble != "none":
            do = {"do": "lose_answer"} if trouble == "lost" else {"status": 429, "retry_after": 0}
            here.fake.script(Fault(at="createWebhook", **cast("Any", do)))
        with jumping_clock():
            came = await asyncio.gather(*(here.ensure(workspace=workspace) for _ in range(10)))

        actions = Counter(one.action for one in came)
        assert actions == {"created" if start == "nothing" else "replaced": 1, "unchanged": 9}
        assert asked(here)["createWebhook"] == (1 if trouble == "none" else 2)
        [gid] = {one.webhook_gid for one in came}
        assert [one.webhook_gid for one in await confirmed(here)] == [gid]
        assert await live(here.fake) == {gid}
        if trouble != "lost" or workspace:
            assert set(here.fake.webhooks) == {gid}
        assert store.most == (1 if start == "nothing" else 2)


async def test_many_that_want_different_things() -> None:
    """They change each other's webhook in turn, but there is one in the end, as the last one wanted it."""
    store = Counting()
    async with scene(store) as here:
        wanted: list[dict[str, Any]] = [
            {"public_url": here.public_url + url, "filters": filters}
            for url in ("", ELSEWHERE)
            for filters in ([], [RENAMED])
        ]
        with jumping_clock():
            await asyncio.gather(*(here.ensure(**one) for one in wanted * 3))

        assert store.most <= 2
        ensured = await here.ensure()
        assert [one.webhook_gid for one in await confirmed(here)] == [ensured.webhook_gid]
        assert await live(here.fake) == {ensured.webhook_gid} == set(here.fake.webhooks)


async def test_it_waits_for_one_that_is_creating(caplog: pytest.LogCaptureFixture) -> None:
    """It says so once, sends nothing meanwhile, and returns that webhook; or creates it, if the other one fails."""
    for fails in (False, True):
        async with scene(MemoryStore()) as here:
            caplog.clear()
            hold = here.fake.hold("createWebhook")
            if fails:
                here.fake.script(Fault(at="handshake", do="drop"))
            first = asyncio.create_task(here.ensure(label="tenant a"))
            await hold.reached()
            with jumping_clock():
                second = asyncio.create_task(here.ensure(label="tenant a"))
                await asyncio.sleep(5)
                assert not second.done()
                assert asked(here) == {"createWebhook": 1}
                hold.release()
                results = await asyncio.gather(first, second, return_exceptions=True)

            [said] = [one.getMessage() for one in caplog.records if "waiting for it" in one.getMessage()]
            assert "another process is creating the webhook on 8675309 (label 'tenant a')" in said
            assert "If it was killed, its registration expires in 75 seconds" in said
            assert [getattr(one, "action", None) for one in results] == (
                [None, "created"] if fails else ["created", "unchanged"]
            )
            assert len(await live(here.fake)) == 1


@pytest.mark.parametrize("replacing", [False, True])
async def test_after_a_kill_it_waits_until_the_deadline(replacing: bool) -> None:
    """The registration of a dead process is not disturbed before that; then the call goes on as if it had not been."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with scene(store) as here:
        dead: dict[str, Any] = {"resource": "8675309", "public_url": here.public_url, "ttl": 75}
        if replacing:
            dead["replaces"] = (await here.ensure(public_url=here.public_url + ELSEWHERE)).registration
        assert await store.open_registration("a" * 64, **dead)
        ensuring = asyncio.create_task(here.ensure())
        clock.now += 74
        with jumping_clock():
            await asyncio.sleep(5)
            assert not ensuring.done()
            clock.now += 1
            ensured = await ensuring

        assert ensured.action == ("replaced" if replacing else "created")
        assert await live(here.fake) == set(here.fake.webhooks) == {ensured.webhook_gid}


async def test_one_call_creates_twice_at_most() -> None:
    """The second time after an unknown outcome, whose webhook counts as left over; after two of them it is an error."""
    async with scene(MemoryStore()) as here:
        here.fake.script(Fault(at="createWebhook", do="lose_answer"))
        assert (await here.ensure(label="other")).orphans == 1
        assert asked(here)["createWebhook"] == 2
        here.fake.requests.clear()
        here.fake.script(Fault(at="createWebhook", do="lose_answer", times=None))
        with pytest.raises(CreateOutcomeUnknownError):
            await here.ensure()
        assert asked(here)["createWebhook"] == 2


async def test_removed_while_it_is_created() -> None:
    """The call that creates it deletes it, and says so."""
    async with scene(MemoryStore()) as here:
        hold = here.fake.hold("createWebhook", when="before_answer")
        ensuring = asyncio.create_task(here.ensure())
        await hold.reached()
        assert await remove_webhook(here.asana, here.store, resource="8675309")
        hold.release()
        with pytest.raises(RegistrationClosedError) as caught:
            await ensuring

        assert caught.value.deleted
        assert here.fake.webhooks == {}


async def test_deleted_between_its_requests() -> None:
    """A webhook that vanishes before its update, or that is removed while it is looked at, is created anew."""
    for at, how in (("updateWebhook", "at Asana"), ("getWebhook", "here")):
        async with scene(MemoryStore()) as here:
            old = await here.ensure()
            hold = here.fake.hold(at, when="before" if how == "at Asana" else "before_answer")
            ensuring = asyncio.create_task(here.ensure(filters=[] if how == "here" else [RENAMED]))
            await hold.reached()
            if how == "here":
                assert await remove_webhook(here.asana, here.store, webhook_gid=old.webhook_gid)
            else:
                await delete_webhook(here.asana, old.webhook_gid)
            hold.release()
            ensured = await ensuring

            assert ensured.action == "created"
            assert await live(here.fake) == {ensured.webhook_gid}


async def test_removed_before_it_is_replaced() -> None:
    """What was to be replaced is closed when its replacement is opened: a new one is created in place of nothing."""
    async with scene(MemoryStore()) as here:
        await here.ensure(public_url=here.public_url + ELSEWHERE)
        opening = Stuck(here.store, "open_registration")
        ensuring = asyncio.create_task(evolve(here, store=cast("Store", opening)).ensure())
        await opening.reached.wait()
        assert await remove_webhook(here.asana, here.store, resource="8675309")
        opening.released.set()
        ensured = await ensuring

        assert ensured.action == "created"
        assert await live(here.fake) == set(here.fake.webhooks) == {ensured.webhook_gid}


async def test_a_changed_url_loses_nothing() -> None:
    """The new webhook comes first. Whatever changes at any moment of the replacement is accepted."""
    async with scene(MemoryStore()) as here:
        old = await here.ensure(public_url=here.public_url + ELSEWHERE)
        here.fake.requests.clear()
        create, delete = "createWebhook", "deleteWebhook"
        moments = [(create, "before"), (create, "after_handshake"), (create, "before_answer")]
        moments += [(delete, "before"), (delete, "before_answer")]
        holds = [here.fake.hold(at, when=when) for at, when in moments]
        ensuring = asyncio.create_task(here.ensure())
        changed = list[str]()
        for hold in holds:
            await hold.reached()
            task = here.fake.add_task()
            here.fake.change(task, field="name")
            await here.fake.settle()
            changed.append(task)
            hold.release()
        ensured = await ensuring

        assert ensured.action == "replaced"
        assert list(asked(here)) == ["getWebhook", "createWebhook", "deleteWebhook"]
        assert {one.status for one in here.fake.deliveries} == {200}
        events = [event.resource.gid for one in await arrived(here.store) for event in one.events]
        assert set(events) == set(changed)
        assert set(here.fake.webhooks) == {ensured.webhook_gid}
        assert old.webhook_gid not in {one.webhook_gid for one in await confirmed(here)}


@pytest.mark.parametrize("seconds", [0, 11, 58, None])
async def test_an_old_webhook_with_something_to_resend(seconds: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """It is deleted when Asana has nothing to send again, after a minute in any case; then a warning names the loss.

    That it waits is logged at once.
    """
    caplog.set_level(logging.INFO, "asana_webhooks")
    async with scene(MemoryStore()) as here:
        old = await here.ensure(public_url=here.public_url + ELSEWHERE, label="tenant a")
        record = here.fake.webhook(old.webhook_gid)
        record.next_attempt_after = record.last_failure_at = record.created_at + timedelta(hours=1)
        with jumping_clock() as clock:
            began_at = clock()

            async def send_again() -> None:
                if seconds is not None:
                    await asyncio.sleep(seconds)
                    record.next_attempt_after = None

            _, ensured = await asyncio.gather(send_again(), here.ensure(label="tenant a"))
            took = clock() - began_at

        assert (ensured.action, list(here.fake.webhooks)) == ("replaced", [ensured.webhook_gid])
        least = 60 if seconds is None else seconds
        assert least <= took < least + 3
        assert caplog.text.count("waiting for at most 60 seconds to delete webhook") == (seconds != 0)
        lost = [one.getMessage() for one in caplog.records if "their events may be lost" in one.getMessage()]
        assert len(lost) == (seconds is None)
        for text in lost:
            assert f"deleting webhook {old.webhook_gid} on 8675309 (label 'tenant a'), which has been replaced" in text
            assert f"(since {record.last_failure_at})" in text


@asynccontextmanager
async def opened(path: Path, box: FernetBox, port: int, fake: FakeAsana) -> AsyncIterator[Scene]:
    """Open a store whose secrets are sealed, and serve it."""
    store = SQLiteStore(path, secret_box=box)
    async with AsanaSession(fake.token, base_url=fake.url) as asana, store:
        async with serve_receiver(Receiver(store), port=port) as public_url:
            yield Scene(fake, asana, store, public_url)


async def test_a_secret_that_cannot_be_opened(tmp_path: Path) -> None:
    """An error names the key and what to do; nothing is replaced, for the key may be back. Removing needs no secret."""
    here_and_port = (tmp_path / "asana.db", free_port())
    keys = {name: Fernet.generate_key().decode() for name in ("2026-01", "2026-02")}
    boxes = [FernetBox(keys), FernetBox({"2026-02": keys["2026-02"]}), FernetBox(keys)]
    async with FakeAsana() as fake:
        for lost in (False, True):
            gids = set[str]()
            for box in boxes[: 2 if lost else 3]:
                async with opened(here_and_port[0], box, here_and_port[1], fake) as here:
                    if box is not boxes[1]:
                        gids.add((await here.ensure()).webhook_gid)
                        continue
                    for wanted in ({}, {"filters": [RENAMED]}, {"public_url": here.public_url + ELSEWHERE}):
                        fake.requests.clear()
                        mend = "'2026-01'.*call remove_webhook, which needs no secret, and then ensure_webhook"
                        with pytest.raises(SecretUnavailableError, match=mend):
                            await here.ensure(**wanted)
                        assert asked(here) == {"getWebhook": 1}
                    assert set(fake.webhooks) == gids
                    if lost:
                        assert await remove_webhook(here.asana, here.store, resource="8675309")
                        assert fake.webhooks == {}
                        assert (await here.ensure()).action == "created"
                        assert await live(fake) == set(fake.webhooks)
            assert len(gids) == 1


START: dict[str, dict[str, Any]] = {
    "create": {},
    "update": {"filters": []},
    "replace": {"public_url": ELSEWHERE, "filters": [RENAMED]},
    "finish": {"public_url": ELSEWHERE, "filters": [RENAMED], "replaced": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("start", START)
async def test_it_may_be_cancelled_at_every_step(start: str) -> None:
    """Nothing stays pending, at most two are live, and the next call ends with one webhook; others are answered 404."""
    store = Remembering()
    dawdling = Dawdling(store)
    wanted: dict[str, Any] = {"filters": [RENAMED]}
    async with scene(store) as here:
        mine = evolve(here, store=cast("Store", dawdling))

        async def prepare() -> None:
            with suppress(KeyError):
                await remove_webhook(here.asana, store, resource="8675309")
            here.fake.webhooks.clear()
            options = dict(START[start])
            if not options:
                return
            replaced, url = options.pop("replaced", False), options.pop("public_url", "")
            old = await here.establish(public_url=here.public_url + url, **options)
            if replaced:
                await here.establish(**wanted, replaces=old.registration)

        async def ensure() -> None:
            await mine.ensure(**wanted)

        async def check() -> None:
            await here.fake.settle()
            assert await dawdling.open_now() == []
            left = [one.webhook_gid for one in await confirmed(here)]
            assert len(left) <= 2
            accepting = await live(here.fake)
            assert accepting == set(left) & set(here.fake.webhooks)  # one may be deleted and not closed yet
            assert accepting or start == "create"
            ensured = await here.ensure(**wanted)
            assert [one.webhook_gid for one in await confirmed(here)] == [ensured.webhook_gid]
            assert await live(here.fake) == {ensured.webhook_gid}
            await prepare()

        await prepare()
        assert await cancel_at_every_step(ensure, check) > 10


async def test_cancelled_while_another_one_creates() -> None:
    """It leaves the other one alone."""
    async with scene(MemoryStore()) as here:
        hold = here.fake.hold("createWebhook")
        first = asyncio.create_task(here.ensure())
        await hold.reached()
        second = asyncio.create_task(here.ensure())
        await pass_turns(20)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        hold.release()
        ensured: EnsuredWebhook = await first

        assert await live(here.fake) == {ensured.webhook_gid}
