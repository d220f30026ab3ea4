"""``health``: what it shows, repairs and watches."""

import json
import signal
from datetime import datetime, timedelta

from asana_webhooks.testing import Fault
from tests.cli.cli_process import on_terminal, run_unread, started
from tests.cli.service import Fixtures, Service, service
from tests.subscriptions.times import answering

AGO = timedelta(hours=20, minutes=47, seconds=30)
"""So that a webhook whose deliveries fail from then on has more than 3 h 12 min left."""
PROJECTS = ("101", "102", "103", "104")
FILE = '[[webhook]]\nresource = ["101", "102"]\n'


async def fail(here: Service, resource: str) -> str:
    """Let the deliveries of a webhook fail, with 503 and a page that quotes the path; return its gid."""
    ensured = await here.ensure(resource)
    await here.receiving.aclose()
    async with answering(here.public_url, 503):
        here.fake.change(resource, field="name")
        await here.fake.settle()
    return ensured.webhook_gid


async def lose(here: Service, resource: str) -> str:
    """Let Asana delete a webhook; return its gid."""
    ensured = await here.ensure(resource)
    del here.fake.webhooks[ensured.webhook_gid]
    return ensured.webhook_gid


async def test_what_it_shows(fixtures: Fixtures) -> None:
    """Each webhook in trouble is a line, the worst first; the others are counted. The status is 1, or 0 if none is."""
    async with service(*fixtures, *PROJECTS, ago=AGO) as here:
        nothing = await here.run("health")
        assert (nothing.status, nothing.out, nothing.err) == (0, "there are no webhooks\n", "")
        await here.ensure("103")
        await here.ensure("104")
        await here.fake.settle()
        well = await here.run("health")
        assert (well.status, well.out) == (0, "2 ok\n")

        gone = await lose(here, "102")
        failing = await fail(here, "101")
        shown = await here.run("health")
        assert (shown.status, shown.err) == (1, "")
        assert shown.out.splitlines() == [
            f"gone: webhook {gone} on 102: Asana or someone has deleted it",
            f"failing: webhook {failing} on 101: Asana deletes it in 3 h 12 min; the target last answered 503",
            "1 gone, 1 failing, 2 ok",
        ]
        objects = await here.run("health", "--json")
        *lines, last = map(json.loads, objects.out.splitlines())
        assert [(one["verdict"], one["resource"]) for one in lines] == [
            ("gone", "102"),
            ("failing", "101"),
            ("ok", "103"),
            ("ok", "104"),
        ]
        assert (lines[1]["last_failure"], lines[1]["resolved"]) == ("the target last answered 503", False)
        assert datetime.fromisoformat(lines[1]["deleted_at"]) > datetime.fromisoformat(lines[0]["last_sign_at"])
        assert last == {"counts": {"gone": 1, "failing": 1, "ok": 2}}

        unread = await run_unread("health", "--json", **here.environment)
        assert (unread.status, unread.err) == (0, "")
        async with on_terminal("health", **here.environment) as terminal:
            assert await terminal.ended() == 1
        assert f"\x1b[31mfailing: webhook {failing} on 101: Asana deletes it in 3 h 12 min; " in terminal.shown

        here.fake.script(Fault(at="getWebhooks", status=403))
        unknown = await here.run("health")
        assert (unknown.status, unknown.out.splitlines()[-1]) == (1, "4 unknown")
        here.fake.script(Fault(at="getWebhooks", status=401))
        refused = await here.run("health")
        assert (refused.status, refused.out) == (4, "")
        assert "getWebhooks: Asana answered 401" in refused.err
        here.monkeypatch.delenv("ASANA_ACCESS_TOKEN")
        assert (await here.run("health")).status == 4


async def test_last_answers(fixtures: Fixtures) -> None:
    """What the target said last is shown without anything that may be its path, or a page."""
    async with service(*fixtures, "101", ago=AGO) as here:
        gid = await fail(here, "101")
        record = here.fake.webhook(gid)
        path = record.target.partition("/asana")[2]
        for said, shown in {
            "": "Asana deletes it in 3 h 12 min",
            f"404 Not Found\n\nno {path}": "Asana deletes it in 3 h 12 min; the target last answered 404",
            f"\nCannot POST {path} now\nmore": "Asana deletes it in 3 h 12 min; Asana says: Cannot POST *** now",
            f"no {path[1:]}": "Asana deletes it in 3 h 12 min; Asana says: no ***",
            "so " * 50: f"Asana deletes it in 3 h 12 min; Asana says: {'so ' * 26}so",
        }.items():
            record.last_failure_content = said
            first = (await here.run("health")).out.splitlines()[0]
            assert first == f"failing: webhook {gid} on 101: {shown}"
            assert here.endpoints()[0] not in (await here.run("health", "--json")).out


async def test_repair(fixtures: Fixtures) -> None:
    """--repair creates anew what is gone and named by the file, once, and says what may be missing."""
    async with service(*fixtures, *PROJECTS, ago=AGO) as here:
        refused = await here.run("health", "--repair")
        assert (refused.status, refused.err) == (
            2,
            "asana-webhooks: webhooks.toml cannot be read: No such file or directory\n",
        )
        here.write(FILE)
        await here.ensure("103")
        await here.fake.settle()
        first, second = await lose(here, "101"), await lose(here, "102")
        whole = await here.run("health", "--repair", "--json")
        assert (whole.status, whole.err) == (0, "")
        *objects, last = map(json.loads, whole.out.splitlines())
        assert last == {"counts": {"repaired": 2, "ok": 1}}
        assert [one["webhook_gid"] for one in objects[:2]] == [first, second]
        assert [one["ensured"]["action"] for one in objects[:2]] == ["created", "created"]
        assert {one["ensured"]["webhook_gid"] for one in objects[:2]} < set(here.fake.webhooks)

        lost = await lose(here, "101")
        here.fake.script(Fault(at="createWebhook", status=403))
        failed = await here.run("health", "--repair")
        assert (failed.status, failed.err) == (1, "")
        assert failed.out.startswith(
            f"gone: webhook {lost} on 101: Asana or someone has deleted it; repairing it failed: "
        )
        later = await here.run("health", "--repair")
        assert (later.status, later.err) == (1, "101 has no webhook; apply creates it\n")
        await here.run("apply", "--yes")
        assert (await here.run("health", "--repair")).status == 0

        await lose(here, "104")  # which the file does not name
        await here.fake.settle()
        left = await here.run("health", "--repair")
        assert (left.status, left.out.splitlines()[-1]) == (1, "1 gone, 3 ok")


async def test_watch(fixtures: Fixtures) -> None:
    """--watch prints each change once, repairs, and ends with 0 on SIGTERM and with 130 on Ctrl-C."""
    async with service(*fixtures, *PROJECTS) as here:
        here.write(FILE)
        for command, number, status in (
            (("--json",), signal.SIGTERM, 0),
            ((here.file, "--repair"), signal.SIGINT, 130),
        ):
            gid = await lose(here, "101")
            async with started("health", *command, "--watch", "--every", "0.1", **here.environment) as process:
                assert process.stdout is not None
                line = (await process.stdout.readline()).decode()
                if "--json" in command:
                    change = json.loads(line)
                    assert (change["verdict"], change["before"], change["webhook_gid"]) == ("gone", None, gid)
                    assert datetime.fromisoformat(change["at"]).tzinfo is not None
                    await here.ensure("101")
                    change = json.loads(await process.stdout.readline())
                    assert (change["removed"], change["resolved"]) == (True, True)
                else:
                    assert f" gone: webhook {gid} on 101: Asana or someone has deleted it; repaired: created " in line
                    assert len(here.fake.webhooks) == 1
                process.send_signal(number)
                out, err = (one.decode() for one in await process.communicate())
            assert (process.returncode, out) == (status, "")
            assert err.startswith("checking the webhooks every 0.1 s")
            assert "Traceback" not in err, err
