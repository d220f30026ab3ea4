"""FakeAsana itself: what it offers, how it starts, and that it leaves nothing behind."""

import asyncio
import gc
import re
import socket
from typing import Any

import aiohttp
import pytest

from asana_webhooks import testing
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing import DEFAULT_TOKEN, FakeAsana, FakeClock, Fault
from tests.testing.fake_play import LARGER_SCOPES, PROJECT, WORKSPACE, playing


async def test_useful_without_arguments() -> None:
    """FakeAsana() has a token, a workspace and a project."""
    async with FakeAsana() as fake:
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/api/1\.0", fake.url)
        assert (fake.token, fake.workspace, fake.projects) == (DEFAULT_TOKEN, WORKSPACE, (PROJECT,))
        assert repr(fake) == "<FakeAsana running, 0 webhooks>"


async def test_options() -> None:
    """Token, workspace, projects and earlier webhooks can be chosen."""
    async with FakeAsana(token="t", workspace="5", projects=["6", "7"], webhooks=3) as fake:
        assert (fake.token, fake.workspace, fake.projects) == ("t", "5", ("6", "7"))
        assert [webhook.quiet for webhook in fake.webhooks.values()] == [True] * 3
        assert len({webhook.resource.gid for webhook in fake.webhooks.values()}) == 3


OPTIONS_THAT_MAKE_NO_SENSE: list[tuple[dict[str, Any], str]] = [
    ({"heartbeat": "sometimes"}, "heartbeat must be"),
    ({"clock": "sundial"}, "clock must be"),
    ({"token": ""}, "access token"),
    ({"webhooks": -1}, "webhooks must be"),
    ({"projects": ["a"]}, "a gid must be a string of digits"),
    ({"projects": ["1331"]}, "the fake already has a resource 1331: workspace"),
]


def test_options_that_make_no_sense() -> None:
    """An option that cannot be is refused with its name."""
    for options, message in OPTIONS_THAT_MAKE_NO_SENSE:
        with pytest.raises(ConfigurationError, match=message):
            FakeAsana(**options)


async def test_port() -> None:
    """A port can be chosen; one that is taken is a clear error, and nothing stays open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
            await FakeAsana(port=port).start()
    async with FakeAsana(port=port) as fake:
        assert f":{port}/" in fake.url


async def test_lifetime() -> None:
    """It starts once, closes as often as one likes, and has no URL before."""
    fake = FakeAsana()
    with pytest.raises(ConfigurationError, match="not running"):
        _ = fake.url
    fake.change(PROJECT, field="name")
    await fake.start()
    with pytest.raises(ConfigurationError, match="started once"):
        await fake.start()
    await fake.aclose()
    await fake.aclose()
    with pytest.raises(ConfigurationError, match="started once"):
        await fake.start()
    assert repr(fake) == "<FakeAsana closed, 0 webhooks>"


async def test_closed_unstarted() -> None:
    """Closing what was never started is fine."""
    fake = FakeAsana()
    await fake.aclose()
    assert repr(fake) == "<FakeAsana closed, 0 webhooks>"


async def test_nothing_happens_after_closing() -> None:
    """A closed fake sends nothing more, and nobody waits for it."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        await fake.aclose()
        fake.change(PROJECT, field="name")
        await fake.settle()
        await fake.advance(24 * 3600)
        assert len(target.deliveries) == 1
        assert await fake.forge_delivery(gid) is None


@pytest.mark.parametrize("clock", ["frozen", "running"])
async def test_nothing_leaks(clock: Any) -> None:
    """Closing ends requests, handshakes and deliveries wherever they are held, and leaves no task behind."""
    before = asyncio.all_tasks()
    async with playing(clock=clock) as (fake, api, target):
        await api.create_gid(target.url)
        holds = [
            fake.hold("getWebhooks"),
            fake.hold("getWebhook", when="before_answer"),
            fake.hold("createWebhook", when="after_handshake"),
            fake.hold("delivery"),
        ]
        calls = [
            asyncio.create_task(api.call("GET", "/webhooks?workspace=1331")),
            asyncio.create_task(api.call("GET", "/webhooks/1")),
            asyncio.create_task(api.create(target.root)),
        ]
        fake.change(PROJECT, field="name")
        for hold in holds:
            await hold.reached()
        target.pause.clear()
        stuck = asyncio.create_task(api.create(target.root + "/stuck"))
        await target.reached(4)
        settling = asyncio.create_task(fake.settle())
        await fake.aclose()
        await settling
        for call in [*calls, stuck]:
            with pytest.raises(aiohttp.ClientError):
                await call
        assert all(hold.waiting == 0 for hold in holds)
        target.pause.set()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    gc.collect()


async def test_quiet_webhooks_keep_no_events() -> None:
    """What happens to a webhook that is never contacted is not kept for it either."""
    async with FakeAsana(webhooks=1) as fake:
        [quiet] = fake.webhooks.values()
        fake.change(quiet.resource.gid, field="name")
        assert quiet.waiting == []


async def test_delayed_requests_do_not_delay_closing() -> None:
    """Closing does not wait for slow requests."""
    async with playing() as (fake, api, _):
        fake.script(Fault(at="*", do="delay", seconds=60, when="before_answer"))
        hold = fake.hold("*")
        call = asyncio.create_task(api.call("GET", "/webhooks?workspace=1331"))
        await hold.reached()
        hold.release()
        async with asyncio.timeout(30):
            await fake.aclose()
        with pytest.raises(aiohttp.ClientError):
            await call


async def test_world() -> None:
    """Projects, tasks and other resources can be added at any time, and changed."""
    async with FakeAsana() as fake:
        project = fake.add_project(name="Bugs")
        assert fake.projects == (PROJECT, project)
        task = fake.add_task("99", parent=project, name="A task")
        assert task == "99"
        story = fake.add_resource("story", parents=[task], resource_subtype="liked")
        event = fake.change(story, action="added", user="12")
        assert event["resource"] == {"gid": story, "resource_type": "story", "resource_subtype": "liked"}
        assert (event["parent"]["gid"], event["user"]["gid"]) == (task, "12")
        assert fake.change(fake.add_resource("team"), field="name")["resource"]["resource_type"] == "team"


CHANGES_THAT_CANNOT_BE_SENT: list[dict[str, Any]] = [
    {"field": "\ud800"},
    {"field": "name", "user": "\ud800"},
    {"field": "tags", "new_value": {"gid": "5", "resource_type": "tag", "more": object()}},
]


async def test_changes_that_cannot_be_sent() -> None:
    """A change that is no JSON is refused at once, and what was to be sent besides still is."""
    async with playing(heartbeat=None) as (fake, api, target):
        await api.create_gid(target.url)
        fake.change(PROJECT, field="name")
        for members in CHANGES_THAT_CANNOT_BE_SENT:
            with pytest.raises(ConfigurationError, match="this change cannot be encoded as JSON"):
                fake.change(PROJECT, **members)
        await fake.settle()
        assert [one.events for one in fake.deliveries] == [1]


async def test_no_access() -> None:
    """A resource can be one the user may not see."""
    async with playing() as (fake, api, target):
        secret_project = fake.add_project(accessible=False)
        answered = await api.create(target.url, secret_project)
        assert (answered.status, answered.message) == (403, "You do not have access to this project.")


def test_task_needs_a_parent() -> None:
    """Without any project a task's parent must be named."""
    fake = FakeAsana(projects=[])
    with pytest.raises(ConfigurationError, match="the fake has no project for the task: pass its parent"):
        fake.add_task()
    assert fake.add_task(parent=fake.workspace)


async def test_lookups() -> None:
    """Webhooks and secrets are found by gid; an unknown one is a clear error."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        assert fake.webhook(gid).target == target.url
        assert fake.secret(gid) == fake.webhooks[gid].secret
        assert fake.secret(gid).reveal() not in repr(fake.webhooks) + repr(fake.handshakes)
        with pytest.raises(ConfigurationError, match=r"the fake has no webhook '1'; number of webhooks: 1$"):
            fake.webhook("1")


async def test_workspace_webhook() -> None:
    """A webhook on the workspace needs filters, says what it is, and hears of projects, not of tasks."""
    async with playing(heartbeat=None) as (fake, api, target):
        assert (await api.create(target.url, WORKSPACE)).message == LARGER_SCOPES
        created = await api.create(target.url, WORKSPACE, filters=[{"resource_type": "project", "action": "added"}])
        assert created.tree["data"]["is_workspace_webhook"] is True
        fake.change(fake.add_task(), action="added")
        fake.change(fake.add_project(), action="added")
        await fake.settle()
        assert len(fake.deliveries) == 1
        assert fake.deliveries[0].events == 1


async def test_other_loopback_addresses() -> None:
    """Targets on any name of this machine are reached."""
    async with playing() as (_, api, target):
        port = target.root.rpartition(":")[2]
        assert (await api.create(f"http://localhost:{port}/x")).status == 201


async def test_two_fakes_side_by_side() -> None:
    """Fakes share nothing."""
    async with playing() as (first, api, target), FakeAsana() as second:
        await api.create_gid(target.url)
        assert (len(first.webhooks), len(second.webhooks)) == (1, 0)


def test_exports() -> None:
    """The words users need are exported."""
    assert {"FakeAsana", "FakeClock", "Fault", "Hold"} <= set(testing.__all__)
    assert all(getattr(testing, name) is not None for name in testing.__all__)
    assert isinstance(FakeAsana().clock, FakeClock)


async def test_only_the_last_records_are_kept() -> None:
    """A fake that runs for long forgets what was long ago: of each kind of record it keeps the last ten thousand."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        for records in (fake.requests, fake.handshakes, fake.deliveries):
            [first] = records
            for _ in range(10_000):
                records.append(first)  # type: ignore[arg-type]
            assert len(records) == 10_000
