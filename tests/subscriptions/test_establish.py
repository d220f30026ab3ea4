"""establish_webhook against the fake: the handshake proposes, the 201 decides, and failures leave nothing open."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asana_webhooks import (
    AsanaError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    HandshakeMismatchError,
    MemoryStore,
    RetryPolicy,
    SQLiteStore,
    WebhookFilter,
)
from asana_webhooks.store.base import RegistrationState, Store, registration_id
from asana_webhooks.testing import Fault
from tests.helpers.cancelling import pass_turns
from tests.helpers.stores import Clock
from tests.subscriptions.scenes import GONE, LoopClock, Remembering, Scene, arrived, scene


@pytest.fixture(params=["memory", "sqlite"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    """The scene, on a store of each kind."""
    store: Store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "asana.db")
    async with scene(store) as opened:
        yield opened


async def test_the_201_confirms_the_registration(stage: Scene) -> None:
    """Afterwards the store knows the gid and the very secret Asana signs with, and deliveries arrive."""
    established = await stage.establish(filters=[WebhookFilter(resource_type="task", action="changed")])

    registration = await stage.registration(established)
    gid = established.webhook_gid
    assert registration.state is RegistrationState.CONFIRMED
    assert (registration.webhook_gid, registration.resource) == (gid, stage.fake.projects[0])
    assert registration.secret == stage.fake.secret(gid)
    assert established.webhook.target == stage.fake.webhook(gid).target
    assert established.webhook.filters == (WebhookFilter(resource_type="task", action="changed"),)
    assert established.orphans == 0
    assert established.webhook.last_success_at is not None  # it is when the first heartbeat was answered
    assert registration.last_heartbeat_at == established.webhook.last_success_at.timestamp()

    task = stage.fake.add_task(parent=stage.fake.projects[0])
    stage.fake.change(task, field="due_on")
    await stage.fake.settle()
    [delivery] = await arrived(stage.store)
    assert delivery.webhook_gid == gid
    assert delivery.events[0].resource.gid == task


async def test_every_webhook_has_an_endpoint_and_a_secret_of_its_own(stage: Scene) -> None:
    """Many created at once do not mix their secrets up (n8n's mistake)."""
    projects = [stage.fake.add_project() for _ in range(12)]

    all_of_them = await asyncio.gather(*(stage.establish(resource=project) for project in projects))

    assert len({one.registration for one in all_of_them}) == 12
    for one in all_of_them:
        assert (await stage.registration(one)).secret == stage.fake.secret(one.webhook_gid)


async def test_establishing_again_after_closing_uses_the_new_secret(stage: Scene) -> None:
    """A webhook made anew on the same resource is not verified with the old one's secret (AWM's mistake)."""
    first = await stage.establish()
    await stage.store.close_registration(first.registration)
    second = await stage.establish()
    stage.fake.change(stage.fake.projects[0], field="name")
    await stage.fake.settle()

    statuses = {delivery.webhook_gid: delivery.status for delivery in stage.fake.deliveries[-2:]}
    assert statuses == {first.webhook_gid: 404, second.webhook_gid: 200}


async def test_an_event_before_the_201_arrives_after_it(stage: Scene) -> None:
    """What Asana sends while create is still open waits in quarantine and is released."""
    stage.fake.script(Fault(at="createWebhook", do="early_event"))
    await stage.establish()

    assert len(await arrived(stage.store)) == 1
    assert {delivery.status for delivery in stage.fake.deliveries} == {200}


@pytest.mark.parametrize("do", ["wrong_secret", "no_secret", "skip_handshake"])
async def test_a_201_that_does_not_fit_the_handshake_is_undone(do: str) -> None:
    """The webhook is deleted, the registration closed, and what came for it dropped."""
    store = Remembering()
    async with scene(store) as here:
        here.fake.script(Fault(at="createWebhook", do=do), Fault(at="createWebhook", do="early_event"))
        with pytest.raises(HandshakeMismatchError, match="The webhook has been deleted; retry") as caught:
            await here.establish()

        assert caught.value.deleted
        assert here.fake.webhooks == {}
        assert await store.states() == [RegistrationState.CLOSED]
        assert await arrived(store) == []


async def test_a_mismatch_that_cannot_be_undone_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """If deleting fails, the error and the log tell; that the webhook is gone is no failure."""
    for status in (404, 500):
        async with scene(MemoryStore(), retry=RetryPolicy(attempts=1)) as here:
            here.fake.script(
                Fault(at="createWebhook", do="wrong_secret"), Fault(at="deleteWebhook", status=status, body=GONE)
            )
            with pytest.raises(HandshakeMismatchError) as caught:
                await here.establish()

            assert caught.value.deleted is (status == 404)
            assert ("Deleting the webhook failed" in str(caught.value)) is (status == 500)
            assert (f"deleting webhook {caught.value.webhook_gid!r} failed" in caplog.text) is (status == 500)


@pytest.mark.parametrize(
    "answer", [{"status": 500}, {"status": 200, "body": '{"data": [], "next_page": null}'}], ids=str
)
async def test_a_search_that_finds_nothing_is_tried_again_at_the_end(answer: dict[str, Any]) -> None:
    """Neither an error nor an empty list proves anything; if the second search fails too, the webhook is counted."""
    for failures, orphans in ((1, 0), (2, 1)):
        async with scene(MemoryStore(), retry=RetryPolicy(attempts=1)) as here:
            lost = Fault(at="createWebhook", do="lose_answer")
            here.fake.script(lost, Fault(at="getWebhooks", times=failures, **answer))

            assert (await here.establish(workspace=here.fake.workspace)).orphans == orphans
            assert len(here.fake.webhooks) == 1 + orphans


async def test_only_the_webhook_of_this_very_target_is_deleted() -> None:
    """Clearing up after a lost answer leaves all other webhooks on the resource alone."""
    async with scene(MemoryStore()) as here:
        first = await here.establish()
        here.fake.script(Fault(at="createWebhook", do="lose_answer"))
        second = await here.establish(workspace=here.fake.workspace, label="second")

        assert set(here.fake.webhooks) == {first.webhook_gid, second.webhook_gid}


async def test_without_a_handshake_there_is_nothing_to_look_for() -> None:
    """A request whose handshake never came cannot have created anything: no search, and nothing counts as left over."""
    async with scene(MemoryStore()) as here:
        here.fake.script(Fault(at="createWebhook", do="reset"))
        established = await here.establish()

        assert established.orphans == 0
        assert [one.operation for one in here.fake.requests] == ["createWebhook", "createWebhook"]


@pytest.mark.parametrize("second", [{"status": 402}, {"do": "wrong_secret"}, {"do": "lose_answer"}], ids=str)
@pytest.mark.parametrize("known", [True, False], ids=["workspace known", "workspace unknown"])
async def test_the_error_of_the_second_attempt_tells_what_the_first_may_have_left(
    second: dict[str, Any], known: bool
) -> None:
    """The first attempt's CreateOutcomeUnknownError is its cause, unless that webhook could be found and deleted."""
    async with scene(MemoryStore()) as here:
        here.fake.script(Fault(at="createWebhook", do="lose_answer"), Fault(at="createWebhook", **second))
        with pytest.raises(AsanaError) as caught:
            await here.establish(workspace=here.fake.workspace if known else None)

        unknown = caught.value.__cause__
        if known:
            assert unknown is None
            assert here.fake.webhooks == {}
        else:
            assert isinstance(unknown, CreateOutcomeUnknownError)
            assert unknown.target in {one.target for one in here.fake.webhooks.values()}


async def test_a_first_attempt_that_came_to_nothing_is_no_cause() -> None:
    """Its handshake never came, so only the second one may have left a webhook, and its error says so itself."""
    async with scene(MemoryStore()) as here:
        here.fake.script(Fault(at="createWebhook", do="reset"), Fault(at="createWebhook", do="lose_answer"))
        with pytest.raises(CreateOutcomeUnknownError) as caught:
            await here.establish()

        assert caught.value.__cause__ is None
        assert [one.target for one in here.fake.webhooks.values()] == [caught.value.target]


async def test_a_session_that_is_closed_meanwhile_is_told_with_what_may_be_left() -> None:
    """The second attempt cannot be sent then; the error tells of the first one's webhook too."""
    async with scene(MemoryStore()) as here:
        hold = here.fake.hold("createWebhook", when="before_answer")
        establishing = asyncio.create_task(here.establish(workspace=here.fake.workspace))
        await hold.reached()
        await here.asana.aclose()
        hold.release()
        with pytest.raises(ConfigurationError, match="closed") as caught:
            await establishing
        await here.fake.settle()

        [left] = here.fake.webhooks.values()
        assert isinstance(caught.value.__cause__, CreateOutcomeUnknownError)
        assert caught.value.__cause__.target == left.target


async def test_only_targets_are_asked_for_when_looking() -> None:
    """A workspace may have many webhooks, and nothing else of them is of interest."""
    async with scene(MemoryStore()) as here:
        here.fake.script(Fault(at="createWebhook", do="lose_answer"))
        await here.establish(workspace=here.fake.workspace)

        [looking] = [one for one in here.fake.requests if one.operation == "getWebhooks"]
        assert looking.query["opt_fields"] == "target"
        assert looking.query["resource"] == here.fake.projects[0]


async def test_looking_for_an_orphan_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """It is given up after 30 seconds, however long a page or a walk may take, and so the second time."""
    async with scene(MemoryStore(), timeout=1000) as here:
        clock = LoopClock()
        here.fake.script(Fault(at="createWebhook", do="lose_answer"))
        hold = here.fake.hold("getWebhooks", times=None)
        establishing = asyncio.create_task(here.establish(workspace=here.fake.workspace))
        for searches in (1, 2):
            await hold.reached(searches)
            clock.turn(25)
            await pass_turns(20)
            assert caplog.text.count("an orphaned webhook may remain") == searches - 1
            clock.turn(5)
        established = await establishing
        hold.release()

        assert established.orphans == 1
        assert caplog.text.count("the search took longer than 30 seconds") == 2


async def test_deleting_what_cannot_be_confirmed_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """It is given up after 15 seconds, and told."""
    async with scene(MemoryStore(), timeout=1000) as here:
        clock = LoopClock()
        here.fake.script(Fault(at="createWebhook", do="wrong_secret"))
        hold = here.fake.hold("deleteWebhook")
        establishing = asyncio.create_task(here.establish())
        await hold.reached()
        clock.turn(10)
        await pass_turns(20)
        assert not establishing.done()
        clock.turn(5)
        with pytest.raises(HandshakeMismatchError) as caught:
            await establishing
        hold.release()

        assert not caught.value.deleted
        assert f"deleting webhook {caught.value.webhook_gid!r} failed" in caplog.text


async def test_a_registration_outlives_the_call_and_its_endpoint_cannot_be_guessed() -> None:
    """The deadline lies a minute behind the session's timeout, and the endpoint is 32 random bytes."""
    clock = Clock()
    async with scene(MemoryStore(clock=clock), timeout=30.0) as here:
        hold = here.fake.hold("createWebhook", when="before_answer")
        establishing = asyncio.create_task(here.establish())
        await hold.reached()
        target = here.fake.handshakes[0].target
        pending = await here.store.find_registration(registration_id(target.rpartition("/")[2]))
        hold.release()
        await establishing

        assert pending is not None
        assert pending.deadline == clock.now + 45
        assert len(base64.urlsafe_b64decode(target.rpartition("/")[2] + "=")) == 32


async def test_bad_arguments_open_nothing() -> None:
    """They fail before anything is sent or stored."""
    urls = ["not a url", "/asana", "ftp://example.com/", "https://example.com/#x", "https://example.com/?x=1#", None]
    urls += ["https://user:password@example.com/", "https://example.com/ a", "https://example.com/\n"]
    urls += ["https://:password@example.com/?x=1", "https://example.com/?a b", "https://example.com/?a\t", "?a=1"]
    urls += ["https://example.com/?key=\xe4", "https://?a=1"]
    arguments: list[dict[str, Any]] = [
        *({"public_url": url} for url in urls),
        {"resource": "my project"},
        {"workspace": "my workspace"},
        {"workspace": 12},
        {"filters": None},
        {"filters": WebhookFilter(action="added")},
        {"filters": [WebhookFilter(action="added", fields=("due_on",))]},
        *({"label": label} for label in ("a" * 201, "\ud800", None, 12)),
        *({"replaces": id} for id in ("a" * 64, "", 12)),
    ]
    store = Remembering()
    async with scene(store) as here:
        for bad in arguments:
            with pytest.raises(ConfigurationError):
                await here.establish(**bad)

        assert (here.fake.requests, store.opened) == ([], [])
