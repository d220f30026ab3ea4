"""``move`` and ``rotate``: other webhooks in the place of those there are."""

import asyncio
import json
import signal

from asana_webhooks import Receiver, RegistrationState
from asana_webhooks.subscriptions import move
from asana_webhooks.testing import Fault, serve_receiver
from tests.cli.cli_process import ended, started
from tests.cli.service import Fixtures, Service, service
from tests.subscriptions.times import HOUR, Turned


def pass_time(here: Service) -> Turned:
    """Let the fake's clock go on while `replace_webhook` sleeps in another thread."""
    loop = asyncio.get_running_loop()
    time = Turned(here.fake)

    async def advance(seconds: float) -> None:
        seconds = max(seconds, 0.001)  # less than a microsecond would be nothing, again and again
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(here.fake.advance(seconds), loop))

    time.advance = advance
    here.monkeypatch.setattr(move, "asyncio", time)
    here.monkeypatch.setattr(move, "time", time)
    return time


async def live(here: Service, label: str = "") -> dict[str, str]:
    """Return the public URL of each live webhook with a label, by gid."""
    found = await here.store.list_registrations(label=label, state=RegistrationState.CONFIRMED)
    return {one.webhook_gid or "": one.public_url for one in found}


async def test_move(fixtures: Fixtures) -> None:
    """All webhooks of a label move, and no event is lost; those that are there already are left alone."""
    async with service(*fixtures, "101", "102", "103") as here, serve_receiver(Receiver(here.store)) as new_url:
        time = pass_time(here)
        first = await here.ensure("101", label="a")
        second = await here.ensure("102", label="a")
        there = await here.ensure("103", label="a", public_url=new_url)
        other = await here.ensure("103")
        moved = await here.run("move", "--to", new_url, "--label", "a")
        assert moved.status == 0
        after = await live(here, "a")
        assert set(after.values()) == {new_url}
        assert there.webhook_gid in after
        new = {one.resource.gid: gid for gid, one in here.fake.webhooks.items() if gid in after}
        assert sorted(moved.out.splitlines()) == [
            f"webhook {first.webhook_gid} has been replaced by webhook {new['101']}",
            f"webhook {second.webhook_gid} has been replaced by webhook {new['102']}",
        ]
        intro, *begun = moved.err.splitlines()
        assert intro == "replacing 2 webhook(s) takes 15 minutes to nine hours; you may interrupt it"
        assert len(begun) == 2
        assert all(" is being replaced by webhook " in line for line in begun)
        assert sum(time.slept) > 7 * HOUR
        assert set(await live(here)) == {other.webhook_gid}
        again = await here.run("move", "--to", new_url, "--label", "a", "--json")
        assert (again.status, again.out) == (0, "")


async def test_rotate_now(fixtures: Fixtures) -> None:
    """--now asks, says what may be lost, and accepts nothing more with the old secrets. One that fails is a line."""
    async with service(*fixtures, "101", "102", "103") as here:
        for resource in here.fake.projects:
            await here.ensure(resource)
        before = {gid: here.fake.secret(gid) for gid in here.fake.webhooks}
        refused = await here.run("rotate", "--now")
        assert (refused.status, await live(here)) == (2, dict.fromkeys(before, here.public_url))
        assert "events that Asana has still to send may be lost. Replace 3 webhook(s)? " in refused.err
        here.fake.script(Fault(at="createWebhook", status=403))
        rotated = await here.run("rotate", "--now", "--yes", "--at-once", "1")
        assert (rotated.status, len(rotated.out.splitlines())) == (1, 2)
        assert all("UTC may be lost: fetch what changed" in line for line in rotated.out.splitlines())
        failed = min(before)
        assert f"replacing webhook {failed} failed: " in rotated.err
        assert len(rotated.err.splitlines()) == 3
        assert set(here.fake.webhooks) == set(await live(here))
        assert set(before) & set(here.fake.webhooks) == {failed}


async def test_mistakes(fixtures: Fixtures) -> None:
    """What is asked for must be clear, and be there; a refused token ends it."""
    async with service(*fixtures, "101", "102") as here:
        ensured = await here.ensure("101")
        for arguments, status, expected in (
            (("rotate", "1", "--label", "a"), 2, "pass either the gids of webhooks, or --label"),
            (("rotate", "--label", "a"), 2, "the store has no live webhook with the label 'a'"),
            (("rotate", "101", "x1"), 2, "asana-webhooks: webhook_gid must be a gid"),
            (("rotate", "77"), 1, "replacing webhook 77 failed: this store has no webhook 77"),
            (("move", "--to", "ftp://x"), 2, "asana-webhooks: public_url must be an http(s) URL"),
        ):
            refused = await here.run(*arguments)
            assert (refused.status, refused.out) == (status, "")
            assert expected in refused.err
        here.fake.script(Fault(at="getWebhook", status=401))
        assert (await here.run("rotate", ensured.webhook_gid)).status == 4
        assert list(here.fake.webhooks) == [ensured.webhook_gid]


async def test_interrupted(fixtures: Fixtures) -> None:
    """Ctrl-C ends it with 130 and says how to go on; both webhooks stay, and the next run finishes."""
    async with service(*fixtures, "101") as here, serve_receiver(Receiver(here.store)) as new_url:
        old = await here.ensure("101")
        async with started("move", "--to", new_url, **here.environment) as process:
            assert process.stderr is not None
            while b"is being replaced" not in (line := await process.stderr.readline()):
                assert line
            process.send_signal(signal.SIGINT)
            end = await ended(process)
        assert (end.status, end.out) == (130, "")
        assert end.err == f"interrupted; to go on, run it again with: {old.webhook_gid}\n"
        assert len(await live(here)) == 2
        back = await here.run("move", "--to", here.public_url)
        assert (back.status, "is being moved to another public_url; finish that" in back.err) == (1, True)
        finished = await here.run("rotate", "--now", "--yes", "--json")
        line = json.loads(finished.out)
        assert (finished.status, line["replaced"]) == (0, old.webhook_gid)
        assert line["lost_since"].endswith("+00:00")
        assert await live(here) == {line["webhook_gid"]: new_url}
